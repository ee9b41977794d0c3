package program

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// DefaultTimeout bounds one request if a configuration does not say.
const DefaultTimeout = 5 * time.Second

// startEvery is the least time between two starts of the program.
const startEvery = 500 * time.Millisecond

// ErrEnded means that the program has ended, or did not run, before it had answered: the
// request may have been carried out or not.
var ErrEnded = errors.New("program: it has ended")

// Config says which program is started.
type Config struct {
	// Command is the program and its arguments. The program is searched for as exec.Command
	// does. It gets this process's environment.
	Command []string
	// Stderr is given what the program says to people. Nil: nobody reads it.
	Stderr io.Writer
	// Timeout bounds one Load or Swap, the start of the program included. 0:
	// DefaultTimeout. It should be below the term.
	Timeout time.Duration
}

// A Store is a failover.Store whose record another program keeps. Its methods may be called
// from any goroutine; they are answered while Run runs. After an error from the program,
// whose text it has, the record may have changed or not.
type Store struct {
	cfg Config

	writing sync.Mutex // to the program; locked without mu

	mu      sync.Mutex
	to      *process      // nil: the program does not run
	silent  time.Time     // since when a Load or Swap waits while nothing is heard; zero: none does
	called  time.Time     // when the last Load or Swap was sent
	up      chan struct{} // closed when it runs, and replaced when it has ended
	last    uint64        // the ID of the last request
	waiting map[uint64]chan answer
	why     error // the last end of the program, for whoever waits in vain; nil: there was none
}

// A process is a program that runs.
type process struct {
	in   *os.File // where it reads
	kill func()   // ends it
}

var _ failover.Store = (*Store)(nil)

// New returns the store that a program will keep. Nothing is started yet.
func New(cfg Config) (*Store, error) {
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return nil, errors.New("program: there is no command")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Store{cfg: cfg, up: make(chan struct{}), waiting: make(map[uint64]chan answer)}, nil
}

// Run starts the program, and starts it anew whenever it ends, until ctx does, and returns why
// ctx has ended. A program that hangs, which has said nothing for ten Timeouts while a Load or
// Swap waits, or does not read a request for one, is killed. The program has ended when it
// returns. It is called once.
func (s *Store) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		begun := time.Now()
		s.fail(s.once(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(startEvery - time.Since(begun)):
		}
	}
	return context.Cause(ctx)
}

// leaves is how long a program may take to end when its input has.
const leaves = time.Second

// once runs the program to its end, and returns how that came.
func (s *Store) once(ctx context.Context) error {
	theirs, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, itsOut, err := os.Pipe()
	if err != nil {
		theirs.Close()
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, s.cfg.Command[0], s.cfg.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, itsOut, s.cfg.Stderr
	cmd.Cancel, cmd.WaitDelay = in.Close, leaves // then it is killed
	err = cmd.Start()
	theirs.Close()
	itsOut.Close()
	if err != nil {
		return fmt.Errorf("%w: it cannot be started: %w", ErrEnded, err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		// What it has written is there; what it has started may keep its output open.
		out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		ended <- err
	}()
	s.begin(&process{in, func() { cmd.Process.Kill() }})
	err = s.read(out)
	s.end()
	in.Close()
	if err == nil {
		select {
		case err = <-ended:
			return fmt.Errorf("%w: %w", ErrEnded, cmp.Or(err, errLeft))
		case <-time.After(leaves):
		}
	}
	cmd.Process.Kill()
	return fmt.Errorf("%w: %w", ErrEnded, cmp.Or(err, <-ended, errLeft))
}

// errLeft means that a program has ended without an error, though its input was still open.
var errLeft = errors.New("nobody had told it to")

func (s *Store) begin(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to, s.silent = p, time.Time{}
	close(s.up)
}

// end takes no more requests for the program.
func (s *Store) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to, s.up = nil, make(chan struct{})
}

// fail ends all that waits for a program that does not run any more.
func (s *Store) fail(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why = why
	for id, to := range s.waiting {
		delete(s.waiting, id)
		close(to)
	}
}

// read hands the answers to those who wait for them, until the program's output ends. A line
// that is not an answer is an error.
func (s *Store) read(out io.Reader) error {
	lines := bufio.NewScanner(untilEnd{out})
	lines.Buffer(nil, MaxLine+1)
	for lines.Scan() {
		var a answer
		if err := decode(lines.Bytes(), &a); err != nil {
			return err
		}
		s.mu.Lock()
		s.silent = time.Time{}
		if to := s.waiting[a.ID]; to != nil {
			delete(s.waiting, a.ID)
			to <- a // there is room for one
		}
		known := a.ID <= s.last && a.ID > 0
		s.mu.Unlock()
		if !known {
			return fmt.Errorf("%w: an answer to request %d, which there was not", errLine, a.ID)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", errLine, err)
	}
	return nil
}

// untilEnd reads what a program writes. When the program has ended a deadline is set on r; once
// what the program had written is read, the deadline counts as the end of the file.
type untilEnd struct{ r io.Reader }

func (u untilEnd) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}

// ask sends a request and waits for its answer.
func (s *Store) ask(ctx context.Context, q request) (answer, error) {
	to := make(chan answer, 1)
	id, err := s.send(ctx, q, to)
	if err != nil {
		return answer{}, err
	}
	select {
	case a, ok := <-to:
		switch {
		case !ok:
			return answer{}, s.ended()
		case a.Error != "":
			return answer{}, fmt.Errorf("program: %s: %s", q.Do, strings.ToValidUTF8(a.Error[:min(maxText, len(a.Error))], "?"))
		}
		return a, nil
	case <-ctx.Done():
		s.forget(id)
		why := context.Cause(ctx)
		if why == errSlow {
			s.endHung()
		}
		return answer{}, why
	}
}

// hangs is for how many Timeouts a program may say nothing while a Load or Swap waits: long
// enough for one that takes its time to begin.
const hangs = 10

// endHung ends a program that hangs.
func (s *Store) endHung() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.to != nil && !s.silent.IsZero() && time.Since(s.silent) >= hangs*s.cfg.Timeout {
		s.to.kill()
	}
}

// send writes a request when the program runs. Its answer will come to a channel.
func (s *Store) send(ctx context.Context, q request, to chan answer) (id uint64, err error) {
	for {
		s.mu.Lock()
		if s.to != nil {
			break
		}
		up := s.up
		s.mu.Unlock()
		select {
		case <-up:
		case <-ctx.Done():
			return 0, errors.Join(context.Cause(ctx), s.ended())
		}
	}
	if len(s.waiting) == MaxRequests {
		s.mu.Unlock()
		return 0, fmt.Errorf("program: more than %d requests at one time", MaxRequests)
	}
	p := s.to
	s.last++
	q.ID = s.last
	s.waiting[q.ID] = to
	if q.Do != doChanged {
		now := time.Now()
		// A Load that its caller has given up long ago is answered by nobody: it says nothing.
		if s.silent.IsZero() || now.Sub(s.called) >= hangs/2*s.cfg.Timeout {
			s.silent = now
		}
		s.called = now
	}
	s.mu.Unlock()
	if err := s.write(p, q); err != nil {
		s.mu.Lock()
		delete(s.waiting, q.ID)
		s.mu.Unlock()
		return 0, err
	}
	return q.ID, nil
}

// write writes a request. A program that does not read it in time is ended.
func (s *Store) write(p *process, q request) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	p.in.SetWriteDeadline(time.Now().Add(s.cfg.Timeout))
	if _, err := p.in.Write(encode(q)); err != nil {
		p.in.Close() // with half a request in it, perhaps
		p.kill()
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	return nil
}

// forget tells the program that nobody waits for an answer any more.
func (s *Store) forget(id uint64) {
	s.mu.Lock()
	_, waits := s.waiting[id]
	delete(s.waiting, id)
	p := s.to
	s.last++
	q := request{ID: s.last, Do: doForget, Of: id}
	s.mu.Unlock()
	if waits && p != nil {
		s.write(p, q)
	}
}

// ended returns an error for what was not answered.
func (s *Store) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return s.why
	}
	return ErrEnded
}

// Load implements failover.Store.
func (s *Store) Load(ctx context.Context) (failover.Record, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	a, err := s.ask(ctx, request{Do: doLoad})
	return a.Record.record(), err
}

// Swap implements failover.Store.
func (s *Store) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	a, err := s.ask(ctx, request{Do: doSwap, Old: sent(old), Next: sent(next)})
	return a.Swapped, err
}

// Changed implements failover.Store.
func (s *Store) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	a, err := s.ask(ctx, request{Do: doChanged, Seen: sent(seen)})
	r := a.Record.record()
	if err == nil && r == seen {
		err = errors.New("program: changed: it is the record that was seen")
	}
	return r, err
}

// errSlow says that the program has not answered in time.
var errSlow = errors.New("program: no answer in time")

func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.cfg.Timeout, errSlow)
}
