package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/qemufile"
)

// bringBack starts the QEMU and gives it the guest, out of memory, through a
// pipe; or, with -postcopy, lets it run the guest and sends the memory afterwards. A QEMU
// that does not take the guest without its memory gets all memory first. bringBack returns
// when the QEMU has ended. loaded is false if it is not known to have taken the guest; the
// copy is still here then.
func (s *standbyRun) bringBack(ctx context.Context) (status int, loaded bool, err error) {
	s.tries.end() // it would be in the way
	s.p.say("bringing    the guest of checkpoint %d back", s.last.Epoch)
	q, err := s.start(ctx)
	if err != nil {
		return exitGuest, false, err
	}
	crashed := false // a guardian of the guest knows that by the socket, which is left then, and refuses
	defer func() {
		if !crashed {
			q.tidy()
		}
	}()
	state, err := s.attended(ctx, q)
	if err != nil && q.taking.replaced.Load() && ctx.Err() == nil {
		q.end()
		q.tidy()
		return s.bringBack(ctx)
	}
	if err != nil && q.follows {
		q.cmd.Process.Kill()
		<-q.done
		if mayHaveRun(<-q.sent) {
			return exitGuest, false, fmt.Errorf("the guest was not brought back, and may have run there for a moment: what is left of it may be older than what it has sent and written: %w", err)
		}
		if ctx.Err() != nil {
			return exitGuest, false, fmt.Errorf("the guest was not brought back: %w", err)
		}
		// That host may not use userfaultfd, say.
		s.p.say("bringing    the guest back with all its memory, since it did not go before that: %v", err)
		s.postcopy = false
		return s.bringBack(ctx)
	}
	if err != nil {
		q.end()
		return exitGuest, false, fmt.Errorf("the guest was not brought back: %w", err)
	}
	s.brought = time.Since(s.lost)
	s.tally.brought.Store(int64(s.brought))
	s.p.say("back        after %.0f ms; the guest is %s, in process %d", float64(s.brought)/1e6, state, q.cmd.Process.Pid)
	s.p.object(map[string]any{"back": map[string]any{
		"epoch": s.last.Epoch, "pid": q.cmd.Process.Pid, "run-state": state, "ms": float64(s.brought) / 1e6,
	}})
	gone := func() {
		if s.cleanup != nil {
			s.cleanup()
		}
		s.guest.Close() // the QEMU has the memory now
	}
	var follows <-chan error // nil: all of the memory is there
	if s.postcopy {
		follows = q.sent
		defer func() {
			if follows != nil { // the QEMU has ended, and so does what is sent to it
				<-follows
				gone()
			}
		}()
	} else {
		gone()
	}

	for ended := false; !ended; {
		select {
		case <-q.done:
			ended = true
		case err := <-follows:
			follows = nil
			if err != nil {
				q.cmd.Process.Kill() // what the guest waits for does not come any more
				<-q.done
				gone()
				return exitGuest, true, fmt.Errorf("the guest is lost: its memory has not followed it: %w", err)
			}
			s.p.say("followed    all of the guest's memory is there, after %.0f ms", float64(time.Since(s.lost))/1e6)
			s.p.object(map[string]any{"followed": map[string]any{"ms": float64(time.Since(s.lost)) / 1e6}})
			gone()
		case o := <-s.orders:
			o.reply(errors.New("the guest runs here already"))
		case <-ctx.Done():
			q.cmd.Process.Signal(syscall.SIGTERM)
			q.leaves(s.p)
			ended = true
		}
	}
	switch {
	case ctx.Err() != nil:
		return exitInterrupted, true, nil
	case q.err != nil:
		crashed = true
		return exitGuest, true, fmt.Errorf("the guest's QEMU: %w", ended(q.err))
	}
	return exitOK, true, nil
}

// attended waits until the QEMU runs the guest, tells if it does not get on, and takes orders meanwhile.
func (s *standbyRun) attended(ctx context.Context, q *process) (state string, err error) {
	warn := func(format string, args ...any) {
		words := fmt.Sprintf(format, args...)
		s.stuck.Store(&words)
		s.p.warn("%s", words)
	}
	defer s.stuck.Store(nil)
	return q.runningAttended(ctx, warn, s.orders, s.override)
}

// mayHaveRun reports whether a guest whose memory was to follow may have run, by the error
// with which sending the memory ended.
func mayHaveRun(sent error) bool {
	return sent == nil || errors.Is(sent, migrate.ErrUnknown) || errors.Is(sent, migrate.ErrPaused)
}

// process is a QEMU that loads the guest.
type process struct {
	cmd  *exec.Cmd
	qmp  string
	done chan struct{} // it has ended, with err
	err  error
	sent chan error // from the writer of the state

	slow   time.Duration // how long it may get no further before that is told
	taking taking

	follows bool          // the memory comes behind the guest
	broken  chan struct{} // closed when the guest or its memory cannot be sent; nil: the memory comes first
}

func (s *standbyRun) start(ctx context.Context) (*process, error) {
	ends := os.Pipe
	if s.postcopy {
		ends = socketPair
	}
	r, w, err := ends()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	dir, qemu := s.placed()
	sock := filepath.Join(dir, "qmp")
	q := &process{qmp: "unix:" + sock, done: make(chan struct{}), sent: make(chan error, 1), slow: s.slowness()}
	// Descriptor 3 is the first of ExtraFiles.
	args := append(slices.Clone(qemu[1:]), "-incoming", "fd:3", "-qmp", q.qmp+",server=on,wait=off")
	if s.postcopy {
		args = append(args, "-global", "migration.x-postcopy-ram=on")
		q.follows, q.broken = true, make(chan struct{})
	}
	q.cmd = exec.Command(qemu[0], args...)
	q.cmd.Stdin, q.cmd.Stdout, q.cmd.Stderr = os.Stdin, s.p.err, s.p.err
	q.cmd.ExtraFiles = []*os.File{r}
	q.cmd.WaitDelay = time.Second
	if err := q.cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	go func() {
		q.err = q.cmd.Wait()
		close(q.done)
	}()
	if s.postcopy {
		q.taking.all.Store(true) // it runs the guest when it can
		go func() {
			err := s.follow(w)
			if q.sent <- err; err != nil {
				close(q.broken)
			}
		}()
		return q, nil
	}
	go func() {
		err := s.guest.PutFresh(qemufile.NewWriter(metered{w, &q.taking}), q.fresh(w))
		q.taking.all.Store(err == nil)
		q.sent <- errors.Join(err, w.Close())
	}()
	return q, nil
}

// running waits until the guest has been loaded, and returns its run state.
func (q *process) running(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-q.done:
			cancel()
		case <-q.broken:
			cancel()
		case <-ctx.Done():
		}
	}()
	if !q.follows {
		select {
		case err := <-q.sent:
			if err != nil {
				select {
				case <-q.done:
				case <-ctx.Done():
				case <-time.After(max(q.slow, time.Second)):
				}
				return "", q.why(err)
			}
		case <-ctx.Done():
			return "", q.why(ctx.Err())
		}
	}
	m, err := dialRetry(ctx, q.qmp)
	if err != nil {
		return "", q.why(err)
	}
	defer m.Close()
	for {
		var st struct{ Status string }
		if err := m.Do(ctx, "query-status", nil, &st); err != nil {
			return "", q.why(err)
		}
		if st.Status != "inmigrate" {
			return st.Status, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return "", q.why(ctx.Err())
		}
	}
}

// why returns the error with which the process ended, if it has ended, and otherwise err.
func (q *process) why(err error) error {
	select {
	case <-q.done:
		if q.err != nil {
			return ended(q.err)
		}
		return errors.New("it ended before the guest was loaded")
	case <-time.After(100 * time.Millisecond):
		return err
	}
}

func (q *process) end() {
	q.cmd.Process.Kill()
	<-q.done
	select {
	case <-q.sent:
	case <-time.After(time.Second):
	}
}

// dialRetry connects to a monitor that may not be there yet.
func dialRetry(ctx context.Context, addr string) (*qmp.Client, error) {
	for {
		m, err := qmp.Dial(ctx, addr)
		if err == nil {
			return m, nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}
