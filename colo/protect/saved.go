package protect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// ErrNotMapped means that a file does not have memory at fixed places, as SaveMapped
// writes it: Restore reads such a file.
var ErrNotMapped = errors.New("protect: the memory in the file is at no fixed places")

// An EnsuredGuest is a Guest that can run before its memory is there. From the call of
// EnsureMemory on, Go code that is about to touch memory (a device's) calls ensure first, as
// [ram.Lazy] explains, which returns when it is there; it is called while the guest is
// paused. A Pause should not wait for a vCPU that waits for memory, but has it stand still
// before it goes on. gokvmhost.Host and colotest.VM are such guests.
type EnsuredGuest interface {
	Guest
	EnsureMemory(ensure func(block string, offset, n uint64) error)
}

// A Saved is a guest that is in a file, from which it goes on before its memory has been
// read: OpenSaved makes it, for Config.Saved.
type Saved struct {
	reg  *vmstate.Registry
	lazy *ram.Lazy
	from provenance

	taken  atomic.Bool   // by a job
	filled chan struct{} // closed when there is nothing left to read, or that has failed

	mu        sync.Mutex
	committed bool  // the devices are those of the file
	err       error // why memory could not be read; then the devices cannot be any more
}

// OpenSaved makes g, which stands still and has not run, the guest that SaveMapped has
// written, but for its memory, which is read when it is touched, and behind that all of it,
// in Run of a job with Config.Saved: the guest runs after the same time however large it is.
// f begins with the file's first byte, and must neither change nor be closed before Filled
// says so, or Close was called. What Restore says of disks, Networks and machine holds. The host needs what a
// ram.Lazy does.
//
// What is read is checked first: with an error g is as it was, unless the error matches
// failover.ErrTorn; then it must never run. A file of Save is ErrNotMapped, a host that
// cannot do it an error for which [ram.Lazy.Probe] stands. A file that is not whole is
// refused here, since the devices are at its end; one that cannot be read later ends Run
// with its error, and the guest stands still then, and must never run on.
func OpenSaved(f io.ReaderAt, g EnsuredGuest, machine string) (*Saved, error) {
	s := &Saved{reg: new(vmstate.Registry), filled: make(chan struct{})}
	if err := s.open(f, g, machine); err != nil {
		return nil, fmt.Errorf("protect: open a saved guest: %w", err)
	}
	return s, nil
}

func (s *Saved) open(f io.ReaderAt, g EnsuredGuest, machine string) (err error) {
	r := qemufile.NewReader(io.NewSectionReader(f, 0, 1<<62))
	c, err := readHead(r, machine)
	if err != nil {
		return err
	}
	if !slices.Contains(c.Capabilities, mappedRAM) {
		return ErrNotMapped
	}
	if s.lazy, err = ram.NewLazy(g.Blocks()); err != nil {
		return err
	}
	if err := s.lazy.Probe(); err != nil {
		return err
	}
	memory := &savedMemory{f: f, lazy: s.lazy}
	if err := errors.Join(s.reg.RegisterLive(ramEntry(), nil, memory), g.Register(s.reg), s.from.register(s.reg)); err != nil {
		return err
	}
	if err := readSections(r, s.reg); err != nil {
		s.reg.Rollback()
		return err
	}
	if err := s.lazy.Listen(); err != nil {
		s.reg.Rollback()
		return fmt.Errorf("%w: %w", failover.ErrTorn, errors.Join(err, s.lazy.Close()))
	}
	g.EnsureMemory(s.lazy.Ensure)
	return nil
}

// savedMemory loads the sections of a file that have the memory.
type savedMemory struct {
	f    io.ReaderAt
	lazy *ram.Lazy
	come bool
}

// LoadState implements vmstate.LiveLoader.
func (m *savedMemory) LoadState(r *qemufile.Reader, version uint32) error {
	if m.come || version != ram.Version {
		return m.lazy.LoadState(r, version) // no more than its end
	}
	m.come = true
	end, err := m.lazy.OpenMapped(m.f, r.Offset())
	if err == nil {
		r.Skip(uint64(end - r.Offset()))
		err = r.Err()
	}
	return err
}

// Generation returns of which generation the guest is; see Config.Held.
func (s *Saved) Generation() uint64 { return s.from.generation }

// Filled returns a channel that is closed when all memory has been read, or Run has ended,
// or has failed to read it, or could not begin.
func (s *Saved) Filled() <-chan struct{} { return s.filled }

// Err returns why memory could not be read, or was not, after Filled says so; nil: it was.
func (s *Saved) Err() error {
	select {
	case <-s.filled:
		return s.why()
	default:
		return nil
	}
}

// why returns why memory could not be read.
func (s *Saved) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close gives back what the host has given for it, where no job runs with it, before the
// guest's memory is. A guest that had not all its memory must never run on. Closing it again
// does nothing.
func (s *Saved) Close() error { return s.lazy.Close() }

// letGo is called when a job ends before it has begun, with the reason: nobody will read
// the memory.
func (s *Saved) letGo(why error) error {
	defer close(s.filled)
	s.mu.Lock()
	s.err = fmt.Errorf("protect: the memory of a saved guest: %w", why)
	s.mu.Unlock()
	return s.Close()
}

// fill reads memory until all is there, or ctx ends.
func (s *Saved) fill(ctx context.Context) error {
	defer close(s.filled)
	return s.read(s.lazy.Fill(ctx), s.lazy.Close)
}

// read is called when memory has been read, or reading it has failed. Where that has failed
// before the devices were committed, these may wait for memory, which nothing but giveUp
// ends: they then see zeros, and the guest has not run and never does.
func (s *Saved) read(err error, giveUp func() error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("protect: the memory of a saved guest: %w", err)
	s.mu.Lock()
	s.err = err
	committed := s.committed
	s.mu.Unlock()
	if committed {
		return err
	}
	return errors.Join(err, giveUp())
}

// commit makes the devices those of the file.
func (s *Saved) commit() error {
	err := commit(s.reg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.err // what the devices have seen may be nothing
	}
	s.committed = err == nil
	return err
}

// memoryIsThere waits until the guest's memory may be touched.
func (j *Job) memoryIsThere(ctx context.Context) error {
	s := j.cfg.Saved
	if s == nil {
		return nil
	}
	select {
	case <-s.filled:
		return s.why()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hasMemory waits as memoryIsThere does, while the job is in a state. If it returns false and no
// error, the job has left that state.
func (j *Job) hasMemory(ctx context.Context, in State) (there bool, err error) {
	act, end := j.while(ctx, in)
	defer end()
	err = j.memoryIsThere(act)
	if err != nil && act.Err() != nil {
		return false, nil
	}
	return err == nil, err
}
