package replication

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
)

// A door is a Gate that a test opens and shuts.
type door struct {
	mu     sync.Mutex
	open   bool
	opened chan struct{}
}

func newDoor() *door { return &door{opened: make(chan struct{})} }

func (d *door) Open() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open
}

func (d *door) Opened() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.opened
}

func (d *door) unlock() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = true
	close(d.opened)
}

// promotedBehind returns a secondary that took over behind a gate.
func promotedBehind(t *testing.T, g Gate) *Secondary {
	t.Helper()
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{Gate: g})
	must(t, err)
	must(t, s.Start(t.Context()))
	write(t, s, 1, 0, SectorSize) // which nobody sees: it is not held
	must(t, s.Sync())
	must(t, s.Stop(t.Context(), true))
	return s
}

func TestNothingIsAnsweredBehindAShutGate(t *testing.T) {
	p := func(t *testing.T, g Gate) Disk {
		p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{Gate: g})
		must(t, err)
		return p
	}
	s := func(t *testing.T, g Gate) Disk { return promotedBehind(t, g) }
	for name, side := range map[string]func(*testing.T, Gate) Disk{"primary": p, "secondary": s} {
		for op, do := range map[string]func(Disk) error{
			"write":  func(d Disk) error { _, err := d.WriteAt(make([]byte, SectorSize), 0); return err },
			"flush":  Disk.Sync,
			"trim":   func(d Disk) error { return d.(Trimmer).Trim(0, SectorSize) },
			"zeroes": func(d Disk) error { return WriteZeroes(d, 0, SectorSize) },
			"FUA":    func(d Disk) error { return WriteFUA(d, make([]byte, SectorSize), 0) },
		} {
			t.Run(name+" "+op, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := newDoor()
					d := side(t, g)
					answered := make(chan error, 1)
					go func() { answered <- do(d) }()
					synctest.Wait()
					select {
					case err := <-answered:
						t.Fatalf("answered: %v", err)
					default:
					}
					if _, err := d.ReadAt(make([]byte, SectorSize), 0); err != nil {
						t.Errorf("a read: %v", err)
					}
					g.unlock()
					must(t, <-answered)

					g = newDoor()
					d = side(t, g)
					go func() { answered <- do(d) }()
					synctest.Wait()
					d.(interface{ Fence() }).Fence()
					wantErr(t, "what waited", <-answered, ErrFenced)
					wantErr(t, "what comes later", do(d), ErrFenced)
				})
			})
		}
	}
}

// A guest that waits behind the gate keeps no checkpoint and no exit waiting.
func TestWaitingAtTheGateHoldsNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		g := newDoor()
		p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{Gate: g, InSync: true})
		must(t, err)
		must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
		must(t, p.Start(ctx))
		answered := make(chan error, 1)
		go func() { answered <- p.WriteZeroes(0, testSize) }()
		synctest.Wait()
		must(t, p.Mark(ctx, 1))
		must(t, p.Loaded(ctx, 1))
		must(t, p.Stop(ctx, true))
		g.unlock()
		must(t, <-answered)
	})
}
