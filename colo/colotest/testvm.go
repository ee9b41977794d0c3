package colotest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Host has the parts that a VMM brings to a session, for [TestVM] to check. Its guest must
// have a load that writes memory whenever it runs. What this does not change within some
// milliseconds, pages or the fields of a device, is not checked: a dirty log that loses the last
// pages is found if the guest writes to those too.
type Host struct {
	// VM is the guest. It is paused, and the goroutines that will run its vCPUs have been
	// started.
	VM colo.VM
	// Log is its dirty log, switched on if it is a ram.LogSwitch.
	Log ram.DirtyLog
	// Blocks are its memory.
	Blocks []ram.Block
	// Register registers its devices.
	Register func(*vmstate.Registry) error
}

// TestVM checks a host VMM's implementation of colo.VM, ram.DirtyLog and
// vmstate.Device against what a session relies on. It runs real time, a second
// or so. newHost makes a guest for one check and frees it with t.Cleanup.
//
// Clocks that go on while the guest is paused are no fault: what changes between
// two saves of a guest that stands still is not compared after a load. A dirty
// log may report more pages than were written. One that is a ram.DirtyKeeper is checked
// as such too.
func TestVM(t *testing.T, newHost func(t *testing.T) Host) {
	for _, c := range vmChecks {
		t.Run(c.name, func(t *testing.T) {
			s := newSubject(newHost(t))
			s.rule = fmt.Sprintf("%q", c.name)
			if err := s.check(c.fn); err != nil {
				t.Error(err)
			}
		})
	}
}

var vmChecks = []struct {
	name string
	fn   func(*subject) error
}{
	{"pause stands still", (*subject).pauseStandsStill},
	{"pauses nest", (*subject).nests},
	{"pauses of others are not undone", (*subject).others},
	{"contexts are honoured", (*subject).contexts},
	{"dirty log reports what changed", (*subject).dirtyLog},
	{"dirty log forgets nothing while the guest runs", (*subject).dirtyLogRunning},
	{"pages that stay writable are reported", (*subject).keeper},
	{"generations by the dirty log alone", (*subject).generations},
	{"devices load what they saved", (*subject).roundTrip},
	{"roll back into a running guest", (*subject).rollBack},
	{"load is refused while the guest runs", (*subject).loadRunning},
	{"a load that is rolled back leaves no trace", (*subject).loadRolledBack},
}

// hang is how long a check waits for a host; only one that is stuck needs it.
const hang = 10 * time.Second

// subject is a host under test.
type subject struct {
	Host
	reg      vmstate.Registry
	patience time.Duration
	rule     string // under check
}

func newSubject(h Host) *subject { return &subject{Host: h, patience: hang, rule: "a rule"} }

// check runs one check. A panic of the host is reported with the rule that was
// being checked, which is the test's name.
func (s *subject) check(fn func(*subject) error) (err error) {
	defer func() {
		if p := new(panicked); errors.As(err, &p) {
			err = fmt.Errorf("the host panicked while %s was checked: %w", s.rule, err)
		}
	}()
	switch {
	case s.VM == nil, s.Log == nil, s.Register == nil:
		return errors.New("the Host must have a VM, a Log and a Register")
	case len(s.Blocks) == 0:
		return errors.New("the Host must have memory: Blocks is empty")
	}
	for _, b := range s.Blocks {
		if n := len(b.Host); n == 0 || n%ram.PageSize != 0 {
			return fmt.Errorf("block %q has %d bytes: it must have whole pages of %d", b.Name, n, ram.PageSize)
		}
	}
	if sw, ok := s.Log.(ram.LogSwitch); ok {
		if err := sw.StartDirtyLog(); err != nil {
			return fmt.Errorf("the dirty log cannot be switched on: %w", err)
		}
	}
	if err := s.Register(&s.reg); err != nil {
		return fmt.Errorf("the devices cannot be registered: %w", err)
	}
	return guarded(func() error { return fn(s) })
}

// panicked is a panic of the host, as an error.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

// guarded calls fn, which calls the host, and makes an error of its panic.
func guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicked{p, debug.Stack()}
		}
	}()
	return fn()
}

func (s *subject) pause() error { return s.call("Pause", s.VM.Pause) }

func (s *subject) resume() error { return s.call("Resume", s.VM.Resume) }

// call calls a method of the VM, and does not wait for one that outlives its context.
func (s *subject) call(name string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- guarded(func() error { return fn(ctx) }) }()
	late := time.NewTimer(2 * s.patience)
	defer late.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s failed: %w", name, err)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("%s has not returned %v after its context ended: it must return when that ends, also where it waits for a lock that a vCPU keeps", name, s.patience)
	}
}

// snapshot copies all of memory.
func (s *subject) snapshot() [][]byte {
	var list [][]byte
	for _, b := range s.Blocks {
		list = append(list, bytes.Clone(b.Host))
	}
	return list
}

func (s *subject) restore(list [][]byte) {
	for i, b := range s.Blocks {
		copy(b.Host, list[i])
	}
}

// differ calls fn for each page that differs from a snapshot, until it returns
// false.
func (s *subject) differ(list [][]byte, fn func(block, page int) bool) {
	for i, b := range s.Blocks {
		for at := 0; at < len(b.Host); at += ram.PageSize {
			if !bytes.Equal(b.Host[at:at+ram.PageSize], list[i][at:at+ram.PageSize]) && !fn(i, at/ram.PageSize) {
				return
			}
		}
	}
}

// changed returns the first page that differs, in words.
func (s *subject) changed(list [][]byte) (where string, ok bool) {
	s.differ(list, func(block, page int) bool {
		where, ok = fmt.Sprintf("page %d of block %q", page, s.Blocks[block].Name), true
		return false
	})
	return where, ok
}

func (s *subject) bitmaps() [][]uint64 {
	var maps [][]uint64
	for _, b := range s.Blocks {
		maps = append(maps, make([]uint64, (len(b.Host)/ram.PageSize+63)/64))
	}
	return maps
}

func (s *subject) readDirty(maps [][]uint64) error {
	for i, b := range s.Blocks {
		if err := s.Log.ReadDirty(b.Name, maps[i]); err != nil {
			return fmt.Errorf("ReadDirty of block %q failed: %w; the log must know each of the guest's %d blocks by its name", b.Name, err, len(s.Blocks))
		}
		if n := len(b.Host) / ram.PageSize; n%64 != 0 && maps[i][n/64]>>(n%64) != 0 {
			return fmt.Errorf("ReadDirty of block %q sets bits beyond its %d pages", b.Name, n)
		}
	}
	return nil
}

func count(maps [][]uint64) (n int) {
	for _, m := range maps {
		n += ram.Bitmap(m).Count()
	}
	return n
}

var errIdle = errors.New("the guest was resumed and wrote no memory: a resumed guest must run (and the guest of this test must have a load that writes)")

// run lets the guest run until it has written memory, and pauses it.
func (s *subject) run() error {
	if err := s.begin(); err != nil {
		return err
	}
	return s.pause()
}

// begin resumes the guest and returns when it has written memory: it may run on soon after Resume
// has returned.
func (s *subject) begin() error {
	before := s.snapshot()
	if err := s.resume(); err != nil {
		return err
	}
	for start := time.Now(); ; {
		time.Sleep(2 * time.Millisecond)
		if _, ok := s.changed(before); ok {
			return nil
		}
		if time.Since(start) > s.patience {
			return errIdle
		}
	}
}

func (s *subject) save() ([]byte, error) {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := s.reg.SaveDevices(w); err != nil {
		return nil, fmt.Errorf("the devices of a paused guest cannot be saved: %w", err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		return nil, fmt.Errorf("the devices of a paused guest cannot be saved: %w", err)
	}
	return b.Bytes(), nil
}

// load loads a saved state into the guest, and commits it.
func (s *subject) load(state []byte) error {
	if err := s.reg.LoadDevices(state, nil); err != nil {
		return fmt.Errorf("the devices do not stage what they saved themselves: %w", err)
	}
	if err := s.reg.Commit(); err != nil {
		return fmt.Errorf("the devices do not commit what they staged, which leaves the guest torn: %w", err)
	}
	return nil
}

// steady is a saved state, and which bytes of it a guest that stands still
// changes: clocks.
type steady struct {
	state []byte
	clock []bool
}

// saveSteady saves several times.
func (s *subject) saveSteady() (steady, error) {
	state, err := s.save()
	if err != nil {
		return steady{}, err
	}
	y := steady{state, make([]bool, len(state))}
	for range 4 {
		time.Sleep(2 * time.Millisecond)
		again, err := s.save()
		if err != nil {
			return steady{}, err
		}
		if len(again) != len(state) {
			return steady{}, fmt.Errorf("a guest that stands still saves %d bytes of device state, then %d: pending work must be finished before Pause returns", len(state), len(again))
		}
		for i := range state {
			if state[i] != again[i] {
				// A clock that is read later differs in more bytes.
				for k := max(0, i-7); k < min(len(state), i+8); k++ {
					y.clock[k] = true
				}
			}
		}
	}
	return y, nil
}

// same compares another save with y, clocks apart.
func (y steady) same(state []byte) error {
	if len(state) != len(y.state) {
		return fmt.Errorf("%d bytes of device state, %d expected", len(state), len(y.state))
	}
	for i, b := range state {
		if b != y.state[i] && !y.clock[i] {
			return fmt.Errorf("byte %d of the device state is %#02x, %#02x expected", i, b, y.state[i])
		}
	}
	return nil
}
