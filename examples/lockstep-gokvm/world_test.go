package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/replication"
)

// A process is one run of the program on one host.
type process struct {
	w       *simWorld
	host    string
	machine *simMachine
	said    bytes.Buffer
	done    chan error
	stop    context.CancelCauseFunc
	vnet    int  // length of the header before frames of its cable
	dead    bool // nothing of it is heard any more
	console *console
	signals map[os.Signal]chan<- os.Signal // that it wants to hear of
}

// Write takes what the process prints.
func (p *process) Write(b []byte) (int, error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.said.Write(b)
}

// A simWorld is two hosts, a and b, the way between them, and their client.
type simWorld struct {
	t     *testing.T
	name  string          // the guest's, which no other world's has
	ways  map[string]*way // to each host
	disks map[string]*store
	args  []string // of every process

	shared bool                             // both hosts have the disk of a, one at a time
	user   *process                         // which that is; mu
	broken func(n int, c net.Conn) net.Conn // what becomes of the n-th connection; nil: nothing
	dials  int                              // mu

	insecure bool
	silence  time.Duration // that a host endures whose guest is to come; 0: as outside tests

	mu        sync.Mutex
	oracle    *colotest.Oracle
	left      map[string]int // frames, by host
	announced map[string]int
	at        map[string]*process
	stuck     error // no guest can be run
}

func newSimWorld(t *testing.T) *simWorld {
	t.Helper()
	if testing.Short() {
		t.Skip("takes the time of a failover")
	}
	t.Parallel() // most of it is waiting
	oracle, err := colotest.NewOracle(simGuest())
	if err != nil {
		t.Fatal(err)
	}
	w := &simWorld{
		insecure: true,
		t:        t, name: rand.Text(), oracle: oracle, ways: map[string]*way{}, disks: map[string]*store{}, left: map[string]int{},
		announced: map[string]int{}, at: map[string]*process{},
	}
	for _, host := range []string{"a", "b"} {
		w.disks[host] = newStore()
		w.ways[host] = newWay(t)
	}
	return w
}

func other(host string) string {
	if host == "a" {
		return "b"
	}
	return "a"
}

// start runs the program on a host.
func (w *simWorld) start(host, mode string, args ...string) *process {
	w.t.Helper()
	args = append(append([]string{
		"-name", w.name, "-mem", "32M", "-tap", "tap0", "-disk", "disk", "-json", fmt.Sprintf("-insecure=%v", w.insecure), "-host", host, "-listen", "127.0.0.1:0",
		"-peer", other(host) + ":1", "-beat", "20ms", "-lost-after", "20s", "-term", "400ms", "-interval", "20ms", "-min-interval", "5ms",
	}, w.args...), args...)
	if mode == modePrimary && !slices.Contains(args, "-resume") {
		args = append(args, "-kernel", "none")
	}
	return w.launch(host, mode, args, runProtected)
}

// launch runs the program on a host with a command line.
func (w *simWorld) launch(host, mode string, args []string, run func(context.Context, options, *console, *printer) error) *process {
	w.t.Helper()
	o, err := parseOptions(append([]string{mode}, args...), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{w: w, host: host, vnet: headerFor(o), done: make(chan error, 1), signals: map[os.Signal]chan<- os.Signal{}}
	o.hw = hardware{
		probe: func() error { return nil },
		machine: func(_ options, devices gokvmhost.Config) (machine, error) {
			m, err := newSimMachine(devices)
			w.mu.Lock()
			defer w.mu.Unlock()
			p.machine, m.stuck = m, w.stuck
			return m, err
		},
		cable: func(options) (cable, error) { return &simCable{process: p, closed: make(chan struct{})}, nil },
		image: func(string) (_ image, keeps bool, _ error) {
			if w.shared {
				i, err := w.use(p)
				return i, true, err
			}
			disk := w.disks[host]
			m, err := replication.OpenMetadata(&platter{p, disk.meta})
			w.mu.Lock()
			defer w.mu.Unlock()
			return &simImage{platter{p, disk.disk}, m, disk}, true, err
		},
		notify: func(c chan<- os.Signal, sig ...os.Signal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, s := range sig {
				p.signals[s] = c
			}
		},
		dial:    w.dialled(w.ways[other(host)].dial),
		silence: w.silence,
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	p.stop = cancel
	std := stdio{strings.NewReader(""), p, io.Discard}
	c := newConsole(std, o.json, nil)
	p.console = c
	printer := newPrinter(o, std, c)
	w.mu.Lock()
	w.at[host] = p
	w.mu.Unlock()
	go func() {
		err := run(ctx, o, c, printer)
		printer.end(err)
		w.ways[host].end()
		p.done <- err
	}()
	w.t.Cleanup(func() {
		cancel(nil)
		select {
		case <-p.done:
		case <-time.After(simPatience):
			w.t.Errorf("host %s does not end", host)
		}
		if w.t.Failed() {
			w.mu.Lock()
			defer w.mu.Unlock()
			var told strings.Builder
			for line := range strings.Lines(p.said.String()) {
				if strings.Contains(line, `"phase"`) || strings.Contains(line, "ARBITRATION") || strings.Contains(line, "JOB_STATUS") {
					told.WriteString(line)
				}
			}
			w.t.Logf("host %s has said:\n%s", host, &told)
		}
	})
	if o.on == "" {
		return p
	}
	_, address, _ := strings.Cut(w.hears(p, `"name":"listening"`), `on `)
	address, _, _ = strings.Cut(address, `"`)
	w.ways[host].lead(address)
	return p
}

// simPatience is how long anything may take that should take a moment. It is longer
// than what a session that is silent may take to end, three times -lost-after.
const simPatience = 3 * time.Minute

// until waits for something.
func (w *simWorld) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(simPatience); ; time.Sleep(2 * time.Millisecond) {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// hears waits until a process has said a text.
func (w *simWorld) hears(p *process, text string) string {
	w.t.Helper()
	var all string
	w.until(p.host+" to say "+text, func() bool {
		all = p.said.String()
		return strings.Contains(all, text)
	})
	return all
}

// hearsNext is hears for what is said from now on.
func (w *simWorld) hearsNext(p *process, text string) func() {
	w.mu.Lock()
	from := p.said.Len()
	w.mu.Unlock()
	return func() {
		w.t.Helper()
		w.until(p.host+" to say "+text+" again", func() bool { return strings.Contains(p.said.String()[from:], text) })
	}
}

// protectedAgain returns what waits until the guest is protected again, wherever that
// is, and returns the host that has it.
func (w *simWorld) protectedAgain() func() *process {
	const text = `"state":"protected"` // of the primary
	w.mu.Lock()
	from := map[*process]int{}
	for _, p := range w.at {
		from[p] = p.said.Len()
	}
	w.mu.Unlock()
	return func() (lead *process) {
		w.t.Helper()
		w.until("a guest that is protected again", func() bool {
			for p, n := range from {
				if strings.Contains(p.said.String()[n:], text) {
					lead = p
				}
			}
			return lead != nil
		})
		return lead
	}
}

// phase is how a process says that it has come to one.
func phase(name string) string { return `"name":"` + name + `"` }

// pair starts both hosts, with the guest on a, and waits until checkpoints happen.
func (w *simWorld) pair(args ...string) (a, b *process) {
	w.t.Helper()
	w.args = args
	b = w.start("b", modeSecondary)
	a = w.start("a", modePrimary)
	w.inStep(a)
	return a, b
}

func (w *simWorld) inStep(p *process) {
	w.t.Helper()
	w.hears(p, phase("protected"))
	w.hears(p, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
}

// kill ends a process as a power cut does, for all that the others, its disk included,
// can see: what it does from now on, as when it takes the guest since it has lost the
// other host, reaches nobody and stays nowhere.
func (w *simWorld) kill(p *process) {
	w.t.Helper()
	w.mu.Lock()
	p.dead = true
	w.mu.Unlock()
	for _, way := range w.ways {
		way.cut(false)
	}
	p.stop(nil)
	w.ended(p)
	w.ways[other(p.host)].mend()
}

// ends lets a process's guest end by itself, as soon as it runs.
func (w *simWorld) ends(p *process, how error) {
	w.t.Helper()
	select {
	case p.machine.ends <- how:
	case <-time.After(simPatience):
		w.t.Fatalf("the guest of host %s does not run", p.host)
	}
}

// ended waits for the end of a process.
func (w *simWorld) ended(p *process) error {
	w.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err // for the cleanup
		return err
	case <-time.After(simPatience):
		w.t.Fatalf("host %s does not end", p.host)
		return nil
	}
}

// repeat gives an order again until it is carried out: a pair that is slow may be about
// to change, and cannot then.
func (w *simWorld) repeat(what string, order func() error) {
	w.t.Helper()
	for end := time.Now().Add(simPatience); ; time.Sleep(20 * time.Millisecond) {
		err := order()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: %v", what, err)
		}
	}
}

// errRefused is an order that was not carried out.
var errRefused = errors.New("refused")

// presses gives a key of the console to a process after Ctrl-A, until it is obeyed.
func (w *simWorld) presses(p *process, key byte) {
	w.t.Helper()
	_, order, _ := p.console.mode()
	w.repeat("Ctrl-A "+string(key), func() error {
		w.mu.Lock()
		from := p.said.Len()
		w.mu.Unlock()
		order(key)
		w.mu.Lock()
		defer w.mu.Unlock()
		if strings.Contains(p.said.String()[from:], phase("refused")) {
			return errRefused
		}
		return nil
	})
}

// signals sends a signal to a process until it says that it has done what that means.
func (w *simWorld) signals(p *process, signal os.Signal, done string) {
	w.t.Helper()
	w.repeat(signal.String(), func() error {
		w.mu.Lock()
		from, hears := p.said.Len(), p.signals[signal]
		w.mu.Unlock()
		hears <- signal
		var said string
		w.until(p.host+" to answer a signal", func() bool {
			said = p.said.String()[from:]
			return strings.Contains(said, phase(done)) || strings.Contains(said, phase("refused"))
		})
		if !strings.Contains(said, phase(done)) {
			return errRefused
		}
		return nil
	})
}

// asks has the monitor of a process do something, until it does. With last the process
// ends with that, and its answer may be lost.
func (w *simWorld) asks(address, command string, args any, last bool) {
	w.t.Helper()
	w.repeat(command, func() error {
		c, err := qmp.Dial(w.t.Context(), address)
		if err != nil {
			w.t.Fatal(err)
		}
		defer c.Close()
		err = c.Do(w.t.Context(), command, args, nil)
		if last && !errors.As(err, new(*qmp.Error)) {
			return nil
		}
		return err
	})
}

// moreLeaves waits for a host's frames.
func (w *simWorld) moreLeaves(p *process) {
	w.t.Helper()
	w.mu.Lock()
	enough := w.left[p.host] + 50
	w.mu.Unlock()
	w.until("frames of "+p.host, func() bool { return w.left[p.host] >= enough })
}

// silent says that a host's guest was never heard.
func (w *simWorld) silent(p *process) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left[p.host] != 0 {
		w.t.Errorf("%d frames have left %s", w.left[p.host], p.host)
	}
}

// judge asks the client.
func (w *simWorld) judge() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.oracle.Verdict(); v.Frames == 0 || v.Lost+v.Contradicted+v.Corrupted > 0 {
		w.t.Errorf("the client: %+v", v)
	}
}
