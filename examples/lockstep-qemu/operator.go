package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/examples/internal/strangers"
	"github.com/gocolo/lockstep/failover"
)

// order asks a running process to do something for an operator: a line of JSON over a socket in
// its -state directory.
type order struct {
	Do    string   `json:"do"`              // promote, rehearse, status
	State string   `json:"state,omitempty"` // a -state to use in place of the standby's
	QEMU  []string `json:"qemu,omitempty"`  // another command after --

	Stopped bool `json:"stopped,omitempty"` // of promote: the primary's guest does not run

	answer chan<- answer // capacity one
}

// reply answers the order: err nil means that it was carried out.
func (o order) reply(err error) {
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	o.answer <- a
}

// answer is the answer to an order of an operator.
type answer struct {
	Error  string          `json:"error,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
}

// maxOrder bounds an order, in bytes.
const maxOrder = 64 << 10

// maxAsking is how many connections to an operator's socket there are at a time that have not given
// their order yet. One more ends the oldest.
const maxAsking = 64

// socketIn returns the socket of the process whose -state is dir.
func socketIn(dir, role string) string { return "unix:" + filepath.Join(dir, role+".sock") }

// listenForOrders listens at the operator's socket of this process, whose -state is dir. The socket is for
// the user of this process alone, whatever the umask: whoever connects may have the guest started here.
func listenForOrders(dir, role string) (net.Listener, error) { return qmp.Listen(socketIn(dir, role)) }

// takeOrders serves the operator's socket until ctx ends. It calls status for an order
// status, and sends all other orders to orders. A lack of descriptors, which passes, does not end it:
// an operator would be told that no such process runs.
func takeOrders(ctx context.Context, l net.Listener, orders chan<- order, status func() any) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	room := strangers.Room{Max: maxAsking}
	for {
		conn, err := room.Accept(ctx, l)
		if err != nil {
			return
		}
		all.Go(func() {
			defer room.Leave(conn)
			stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
			defer stop()
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			in := bufio.NewScanner(conn)
			in.Buffer(nil, maxOrder)
			if !in.Scan() || !room.Leave(conn) {
				return
			}
			var o order
			var a answer
			switch err := json.Unmarshal(in.Bytes(), &o); {
			case err != nil:
				a.Error = err.Error()
			case o.Do == "status":
				a.Status, err = json.Marshal(status())
				if err != nil {
					a.Error = err.Error()
				}
			case (o.Do == "promote" || o.Do == "rehearse") && orders != nil:
				got := make(chan answer, 1)
				o.answer = got
				var ending <-chan struct{} // a promotion that was taken is answered at once, whatever comes
				select {
				case orders <- o:
					if o.Do == "rehearse" {
						conn.SetDeadline(time.Now().Add(maxRehearsal + time.Minute))
						ending = ctx.Done()
					}
					select {
					case a = <-got:
					case <-ending:
						a.Error = "it is ending"
					}
				case <-ctx.Done():
					a.Error = "it is ending"
				}
			default:
				a.Error = fmt.Sprintf("%q is nothing that can be ordered here", o.Do)
			}
			json.NewEncoder(conn).Encode(a)
		})
	}
}

// tell gives an order to the process at a socket.
func tell(ctx context.Context, addr string, o order) (a answer, err error) {
	network, address := qmp.Split(addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return a, err
	}
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return a, fmt.Errorf("no answer: %w", err)
	}
	if a.Error != "" {
		err = errors.New(a.Error)
	}
	return a, err
}

// inUse returns the error for a directory that a running process has for its state: two would
// leave their guests in the same files.
func inUse(dir, who string) error {
	return fmt.Errorf("-state %s: a %s that runs has that: see lockstep-qemu status -state %s, and give each its own", dir, who, dir)
}

// absent returns the error for an order to a process that does not run.
func absent(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no standby, relay or guardian whose -state is %s runs on this host: %w", dir, err)
	}
	return err
}

// noMonitor adds to err how a QEMU gets a monitor, if there is none at addr.
func noMonitor(addr string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no QEMU has a monitor at %s (start it with -qmp unix:PATH,server=on,wait=off, and give PATH here): %w", addr, err)
	}
	if errors.Is(err, syscall.EAGAIN) { // what was not accepted yet fills the socket's queue
		return fmt.Errorf("the QEMU at %s takes no connection: it hangs, or another client is connected to its monitor: %w", addr, err)
	}
	return err
}

const aboutPromote = `usage: lockstep-qemu promote -standby DIR [flags] [-- qemu-system-x86_64 ...]

Promote tells the standby whose -state is DIR to go on with its guest. A guardian
that answers is made to stop the primary's guest first, and an arbiter is asked;
without either it is you who makes sure that the guest does not run elsewhere. So it
is if the guardian was there and does not answer any more, as one that hangs: the
order is refused then, unless you say -stopped, or the standby has a -fence, which is
run first. An arbiter does not stop a guest whose guardian hangs. One that has given
the guest to the other host for good, as when its guardian was ended, is told by
-stopped that it does not run there. A
standby that has been started again goes on with the last checkpoint of -keep.

With -state, and with another QEMU after --, a standby that could not save its
guest, or start it, tries again with these. Exit status: 0 the order was taken
(the standby says what comes of it), 1 not, 2 wrong arguments.
`

func promoteCommand(ctx context.Context, args []string, t terminal) int {
	f := flag.NewFlagSet("promote", flag.ContinueOnError)
	dir := f.String("standby", "", "order the standby whose -state is `DIR`; that of -state, if not given")
	state := f.String("state", "", "leave the guest in another `DIR` than the standby's")
	asJSON := f.Bool("json", false, "print one JSON object in place of words")
	stopped := f.Bool("stopped", false, "the primary's guest surely does not run, though its guardian does not answer")
	timeout := f.Duration("timeout", 10*time.Second, "wait for the answer for so long")
	if status, done := parse(f, aboutPromote, args, t, true); done {
		return status
	}
	if len(f.Args()) > 0 && !slices.Contains(args, "--") {
		return t.wrong("promote", fmt.Errorf("unexpected argument %q (the QEMU comes after --)", f.Arg(0)))
	}
	if *dir == "" {
		*dir = *state
	}
	if *dir == "" {
		return t.wrong("promote", errors.New("-standby is missing"))
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &printer{terminal: t, json: *asJSON}
	if _, err := tell(ctx, socketIn(*dir, "standby"), order{Do: "promote", State: *state, QEMU: f.Args(), Stopped: *stopped}); err != nil {
		p.object(map[string]any{"promote": map[string]any{"ordered": false, "error": err.Error()}})
		p.warn("promote: %v", absent(*dir, err))
		return exitFailed
	}
	p.object(map[string]any{"promote": map[string]any{"ordered": true}})
	p.say("ordered     the standby says what comes of it: lockstep-qemu status -state %s", *dir)
	return exitOK
}

const aboutStatus = `usage: lockstep-qemu status -state DIR [-json]

Status asks the standby or the guardian whose -state is DIR how it stands. Exit
status: 0 it has answered, 1 nobody has, 2 wrong arguments.
`

func statusCommand(ctx context.Context, args []string, t terminal) int {
	f := flag.NewFlagSet("status", flag.ContinueOnError)
	dir := f.String("state", "", "ask the standby, relay or guardian whose -state is `DIR`")
	asJSON := f.Bool("json", false, "print one JSON object in place of words")
	timeout := f.Duration("timeout", 10*time.Second, "wait for the answer for so long")
	if status, done := parse(f, aboutStatus, args, t, false); done {
		return status
	}
	if *dir == "" {
		return t.wrong("status", errors.New("-state is missing"))
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &printer{terminal: t, json: *asJSON}
	var errs []error
	found := false
	for _, role := range []string{"guardian", "standby"} {
		a, err := tell(ctx, socketIn(*dir, role), order{Do: "status"})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = true
		p.object(map[string]json.RawMessage{role: a.Status})
		sayStatus(p, role, a.Status)
	}
	if !found {
		p.warn("status: %s", absent(*dir, errors.Join(errs...)))
		return exitFailed
	}
	return exitOK
}

// sayStatus prints what an object has, one member a line, in its order.
func sayStatus(p *printer, role string, status json.RawMessage) {
	p.say("%s", role)
	d := json.NewDecoder(strings.NewReader(string(status)))
	if _, err := d.Token(); err != nil {
		return
	}
	for d.More() {
		key, err := d.Token()
		var raw json.RawMessage
		if err != nil || d.Decode(&raw) != nil {
			return
		}
		if key == "secondaries" {
			saySecondaries(p, "secondary", raw)
			continue
		}
		var value any
		if json.Unmarshal(raw, &value) != nil {
			return
		}
		switch value {
		case nil, "", 0.0, false:
			continue
		}
		if n, ok := value.(float64); ok {
			value = fmt.Sprintf("%.0f", n)
		}
		p.say("  %-11s %v", key, value)
	}
}

// checkQEMU says what is wrong with a command after --.
func checkQEMU(qemu []string) error {
	if slices.Contains(qemu, "-incoming") {
		return errors.New("-incoming is added to the QEMU's arguments, leave it out")
	}
	if slices.Contains(qemu, "-daemonize") || slices.Contains(qemu, "--daemonize") {
		return errors.New("-daemonize would have the QEMU leave this program, which waits for its end: leave it out")
	}
	if len(qemu) > 0 {
		if _, err := exec.LookPath(qemu[0]); err != nil {
			return err
		}
	}
	return nil
}

// promoted carries out the order promote of an operator during a session.
func (s *standbyRun) promoted(o order, sec *colo.Secondary) error {
	if s.conn != nil && s.conn.gone() { // and its end was not noticed by anything else yet
		s.heard.update(func() { s.heard.running = s.heard.promoted && s.heard.running })
	}
	if s.fence == "" && !o.Stopped {
		if err := s.heard.unstopped(); err != nil {
			return err
		}
	}
	if err := s.override(o); err != nil {
		return err
	}
	s.heard.update(func() { s.heard.promoted, s.heard.assured = true, s.heard.assured || o.Stopped })
	err := sec.Failover()
	if errors.Is(err, failover.ErrInProgress) {
		err = nil
	}
	return err
}

// override replaces the directory and the QEMU by those that an order names. Nothing else
// uses them meanwhile.
func (s *standbyRun) override(o order) error {
	if err := errors.Join(checkQEMU(o.QEMU), checkState(o.State)); err != nil {
		return err
	}
	if o.State != "" && o.State != s.state {
		if err := os.MkdirAll(o.State, 0o700); err != nil {
			return err
		}
	}
	s.placing.Lock()
	defer s.placing.Unlock()
	if o.State != "" {
		s.place = o.State
	}
	if len(o.QEMU) > 0 {
		s.qemu = o.QEMU
	}
	return nil
}
