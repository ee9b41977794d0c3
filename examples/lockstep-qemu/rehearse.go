package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/qemufile"
)

const aboutRehearse = `usage: lockstep-qemu rehearse -standby DIR [flags]

Rehearse has the standby whose -state is DIR try the QEMU after its -- with the
guest of the last checkpoint, and end it again: a command line that does not fit is
found out now, with QEMU's words, and not when the primary is lost. "lockstep-qemu standby
-rehearse" does it after the first checkpoint.

The guest is paused (-S) and announces itself to no network, its -drives are written
to temporary files (-snapshot), and checkpoints go on meanwhile. It takes the guest's
memory once more while it lasts. What else the command line opens is opened as it
will be: files of serial lines, tap devices with their scripts, the daemons behind
vhost-user devices, a TPM (-tpmdev) and virtiofs, of which each may take one QEMU only.
A QEMU with -blockdev, or memory with share=on, is not tried, for it would write to the
disk, or where others read; nor is one with -daemonize, which would leave this process,
or -readconfig, in whose file any of these may be.

Exit status: 0 the QEMU takes the guest, 1 it does not, or it could not be tried, 2
wrong arguments.
`

func rehearseCommand(ctx context.Context, args []string, t terminal) int {
	f := flag.NewFlagSet("rehearse", flag.ContinueOnError)
	dir := f.String("standby", "", "order the standby whose -state is `DIR`")
	asJSON := f.Bool("json", false, "print one JSON object in place of words")
	timeout := f.Duration("timeout", maxRehearsal, "wait for the answer for so long")
	if status, done := parse(f, aboutRehearse, args, t, false); done {
		return status
	}
	if *dir == "" {
		return t.wrong("rehearse", errors.New("-standby is missing"))
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &printer{terminal: t, json: *asJSON}
	if _, err := tell(ctx, socketIn(*dir, "standby"), order{Do: "rehearse"}); err != nil {
		p.object(map[string]any{"rehearse": map[string]any{"fits": false, "error": err.Error()}})
		p.warn("rehearse: %v", absent(*dir, err))
		return exitFailed
	}
	p.object(map[string]any{"rehearse": map[string]any{"fits": true}})
	p.say("rehearsed   the QEMU after -- takes the guest")
	return exitOK
}

const (
	// maxRehearsal bounds a rehearsal.
	maxRehearsal = 10 * time.Minute

	// rehearsalAside is how much of the guest may change while it is rehearsed, in
	// bytes of pages.
	rehearsalAside = 256 << 20

	// maxSaid bounds what is kept of a QEMU's words, in bytes.
	maxSaid = 4 << 10
)

// rehearsals tries the QEMU after --, once at a time.
type rehearsals struct {
	s *standbyRun

	mu   sync.Mutex
	last string             // how the last one has ended, for "lockstep-qemu status"
	stop context.CancelFunc // nil: none runs
	done chan struct{}      // closed when it has ended
}

// begin tries the QEMU with the last checkpoint, in the background, and sends the result to
// got, if that is not nil. Until end the standby keeps the same guest.
func (r *rehearsals) begin(got chan<- answer) {
	ctx, cancel := context.WithTimeout(context.Background(), maxRehearsal) // end, at the latest, ends it
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		cancel()
		if got != nil {
			got <- answer{Error: "one is under way"}
		}
		return
	}
	done := make(chan struct{})
	r.stop, r.done = cancel, done
	guest := r.s.guest
	go func() {
		defer close(done)
		defer cancel()
		err := r.tell(r.try(ctx, guest))
		r.mu.Lock()
		r.stop = nil
		r.mu.Unlock()
		if got != nil {
			var a answer
			if err != nil {
				a.Error = err.Error()
			}
			got <- a
		}
	}()
}

// end ends a rehearsal that is under way, and returns when its QEMU is gone.
func (r *rehearsals) end() {
	r.mu.Lock()
	stop, done := r.stop, r.done
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
	if done != nil {
		<-done
	}
}

func (r *rehearsals) status() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// tell reports how a rehearsal went.
func (r *rehearsals) tell(epoch uint64, took time.Duration, err error) error {
	said := map[string]any{"epoch": epoch, "fits": err == nil, "ms": float64(took) / 1e6}
	text := fmt.Sprintf("the QEMU after -- takes the guest of checkpoint %d", epoch)
	switch {
	case err == nil:
		r.s.tally.fits.Add(1)
		r.s.p.say("rehearsed   %s, after %.0f ms", text, float64(took)/1e6)
	default:
		r.s.tally.misfits.Add(1)
		said["error"] = err.Error()
		text = oneLine(err)
		r.s.p.warn("rehearsal: %s", text)
	}
	r.s.p.object(map[string]any{"rehearsal": said})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = text
	return err
}

// unfit returns why a QEMU cannot be tried without harm.
func unfit(qemu []string) error {
	if len(qemu) == 0 {
		return errors.New("there is no QEMU after --")
	}
	for i, arg := range qemu {
		switch name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"); {
		case arg == name: // an argument of the option before
			switch {
			case i == 0:
			case says(arg, "snapshot", "off", "no", "false", "n"):
				return fmt.Errorf("it is not tried: %s would write to the disk", arg)
			case says(arg, "share", "on", "yes", "true", "y"):
				return fmt.Errorf("it is not tried: with %s its memory would be written where others read it", arg)
			}
		case name == "blockdev":
			return errors.New("it is not tried: -snapshot is for -drive, so a -blockdev would write to the disk")
		case name == "readconfig":
			return errors.New("it is not tried: what is in the file of -readconfig is not looked at; put it after --")
		case name == "daemonize":
			return errors.New("it is not tried: with -daemonize it would not end with its process; leave that out")
		}
	}
	return nil
}

// says reports whether an option's argument, KEY=VALUE,... or JSON, has one of these
// values for key. A key alone, behind others, is on.
func says(arg, key string, values ...string) bool {
	for i, part := range strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(",{}", r) }) {
		got, value, ok := strings.Cut(strings.Replace(part, ":", "=", 1), "=")
		if strings.Trim(got, "\" \t\n") != key {
			continue
		}
		if !ok && i > 0 {
			value = "on"
		}
		if slices.Contains(values, strings.Trim(value, "\" \t\n")) {
			return true
		}
	}
	return false
}

// try starts the QEMU, gives it the guest, and ends it.
func (r *rehearsals) try(ctx context.Context, guest *standby.Copy) (epoch uint64, took time.Duration, err error) {
	dir, qemu := r.s.placed()
	if err := unfit(qemu); err != nil {
		return 0, 0, err
	}
	in, err := guest.Info()
	if err != nil {
		return 0, 0, err
	}
	if free, ok := availableMemory(); ok && free < in.Used+in.Used/8 {
		return in.Epoch, 0, fmt.Errorf("it is not tried: it takes %s of memory while it lasts, and this host has %s left", size(in.Used), size(free))
	}
	began := time.Now()
	v, err := guest.NewView(rehearsalAside)
	if err != nil {
		return in.Epoch, 0, err
	}
	defer v.Close()
	q, err := rehearsing(ctx, qemu, filepath.Join(dir, "rehearsal"), v, r.s.slowness())
	if err != nil {
		return v.Epoch(), 0, err
	}
	_, err = r.s.rehearsed(ctx, q)
	if err == nil {
		q.quit(ctx)
	}
	view := q.stop()
	q.tidy()
	took = time.Since(began)
	switch {
	case errors.Is(view, standby.ErrStale):
		err = fmt.Errorf("it was given up: the guest has changed more than %s meanwhile", size(rehearsalAside))
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("the QEMU after -- has not taken the guest of checkpoint %d within %v, and was ended; does it hang? %s", v.Epoch(), took.Round(time.Second), q.said)
	case errors.Is(view, standby.ErrNothing) || err != nil && ctx.Err() != nil:
		err = errors.New("it was given up: the guest goes on, or has gone")
	case err != nil:
		err = fmt.Errorf("the QEMU after -- does not take the guest of checkpoint %d: %w: %s", v.Epoch(), err, q.said)
	}
	return v.Epoch(), took, err
}

// rehearsed is a QEMU that is tried.
type rehearsed struct {
	*process
	said    *lastWords
	pipe    *os.File      // into which the guest is written
	written chan struct{} // closed when it is, or cannot be
	view    error         // why; valid then
}

func rehearsing(ctx context.Context, qemu []string, sock string, v *standby.View, slow time.Duration) (*rehearsed, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	q := &rehearsed{process: &process{qmp: "unix:" + sock, done: make(chan struct{}), sent: make(chan error, 1), slow: slow},
		said: &lastWords{}, pipe: w, written: make(chan struct{})}
	// A guest that is loaded announces itself to its networks, even if it is paused.
	args := append(slices.Clone(qemu[1:]), "-S", "-snapshot", "-global", "migration.announce-rounds=0",
		"-incoming", "fd:3", "-qmp", q.qmp+",server=on,wait=off")
	q.cmd = exec.CommandContext(ctx, qemu[0], args...)
	q.cmd.Stdout, q.cmd.Stderr = q.said, q.said
	q.cmd.WaitDelay = time.Second
	q.cmd.ExtraFiles = []*os.File{r}
	if err := q.cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	go func() {
		q.err = q.cmd.Wait()
		close(q.done)
	}()
	go func() {
		defer close(q.written)
		q.view = v.Put(qemufile.NewWriter(metered{w, &q.taking}))
		q.taking.all.Store(q.view == nil)
		q.sent <- errors.Join(q.view, w.Close())
	}()
	return q, nil
}

// rehearsed waits until a QEMU that is tried has taken the guest, and tells if it does not get on.
func (s *standbyRun) rehearsed(ctx context.Context, q *rehearsed) (state string, err error) {
	warn := func(format string, args ...any) { s.p.warn("rehearsal: "+format, args...) }
	return q.runningAttended(ctx, warn, nil, nil)
}

// stop returns when the QEMU has ended, and why its guest could not be read or
// written.
func (q *rehearsed) stop() error {
	q.cmd.Process.Kill()
	<-q.done
	q.pipe.Close() // somebody that it has started may have the other end
	<-q.written
	return q.view
}

// quit lets the QEMU tidy up after itself, if it does so soon.
func (q *rehearsed) quit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m, err := qmp.Dial(ctx, q.qmp)
	if err != nil {
		return
	}
	defer m.Close()
	m.Do(ctx, "quit", nil, nil)
	select {
	case <-q.done:
	case <-ctx.Done():
	}
}

// lastWords keeps the end of the output of a process.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if n := len(l.text) - maxSaid; n > 0 {
		l.text = append(l.text[:0], l.text[n:]...)
	}
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.text) == 0 {
		return "it has printed nothing"
	}
	return strings.TrimSpace(string(l.text))
}
