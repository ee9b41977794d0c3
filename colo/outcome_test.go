package colo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
)

// The file testdata/outcomes.txt says how a session ends for each fault at each
// step of either side. It is the expectation, line by line. Where the two sides
// come to know of the fault in either order, it has a line for each order. A run
// may end as any line of its fault and step says, and as no other; -update adds
// what is missing, and then the file is to be read again.
const outcomes = "testdata/outcomes.txt"

// outcomeKey is how much of a line names its fault, side, epoch and step.
const outcomeKey = 70

var errFault = errors.New("injected")

// faulty is the host of one side, of which a part can be broken.
type faulty struct {
	x    *pair
	mode event.Mode
	ctx  context.CancelFunc

	pauseLate, pauseFails, resumeFails bool // the next one
	netFails, saveFails, loadFails     bool
	stuck                              chan struct{} // a vCPU waits in a write until it is closed; nil: none does
}

func (f *faulty) once(b *bool) error {
	if *b {
		*b = false
		return errFault
	}
	return nil
}

// faultyVM breaks Pause and Resume.
type faultyVM struct {
	colo.VM
	f *faulty
}

func (v faultyVM) Pause(ctx context.Context) error {
	if v.f.once(&v.f.pauseLate) != nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := v.f.once(&v.f.pauseFails); err != nil {
		return err
	}
	if v.f.stuck != nil {
		select {
		case <-v.f.stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return v.VM.Pause(ctx)
}

func (v faultyVM) Resume(ctx context.Context) error {
	if err := v.f.once(&v.f.resumeFails); err != nil {
		return err
	}
	return v.VM.Resume(ctx)
}

// faultyDisk releases the vCPU that waits when it is cut.
type faultyDisk struct {
	*colotest.Disk
	f *faulty
}

func (d faultyDisk) Cut() {
	if d.f.stuck != nil {
		select {
		case <-d.f.stuck:
		default:
			close(d.f.stuck)
		}
	}
}

// faultyNet breaks the next call but Failover.
type faultyNet struct {
	*colotest.Network
	f *faulty
}

func (n faultyNet) Mark(e uint64) error {
	return errors.Join(n.Network.Mark(e), n.f.once(&n.f.netFails))
}
func (n faultyNet) Received(e uint64) error {
	return errors.Join(n.Network.Received(e), n.f.once(&n.f.netFails))
}
func (n faultyNet) Loaded(e uint64) error {
	return errors.Join(n.Network.Loaded(e), n.f.once(&n.f.netFails))
}
func (n faultyNet) Commit(e uint64) error {
	return errors.Join(n.Network.Commit(e), n.f.once(&n.f.netFails))
}
func (n faultyNet) Resumed(e uint64) error {
	return errors.Join(n.Network.Resumed(e), n.f.once(&n.f.netFails))
}

// faultyDevice cannot be saved, or refuses what it is to load.
type faultyDevice struct {
	f *faulty
	v uint64
}

func (d *faultyDevice) PreSave() error { return d.f.once(&d.f.saveFails) }

func (d *faultyDevice) VMState(f *vmstate.Fields) {
	f.Uint64("v", &d.v)
	if f.Loading() {
		f.Check("no fault", d.f.once(&d.f.loadFails) == nil)
	}
}

// fault is one thing that goes wrong, and which side the arbiter prefers then.
type fault struct {
	name   string
	inject func(*faulty)
	winner func(event.Mode) event.Mode // by the side with the fault
	only   event.Mode                  // the side that can have it; empty: both
}

func self(m event.Mode) event.Mode { return m }

func rejectBy(f *faulty, err error, wait time.Duration) {
	deny, until := f.x.witness.Deny, time.Now().Add(wait)
	f.x.witness.Deny = func(c colo.Claim) error {
		if err != nil && c.Mode == f.mode || err == nil && time.Now().Before(until) {
			return errors.Join(err, context.DeadlineExceeded)
		}
		return deny(c)
	}
}

var faults = []fault{
	{"failover ordered", func(f *faulty) { _, r := f.x.side(f.mode); r.Failover() }, self, ""},
	{"heartbeat lost", func(f *faulty) { _, r := f.x.side(f.mode); r.Lost(errFault) }, self, ""},
	{"link cut", func(f *faulty) { f.x.pc.Break() }, self, ""},
	{"context cancelled", func(f *faulty) { f.ctx() }, self, ""},
	{"arbiter refuses", func(f *faulty) { f.x.pc.Break() }, other, ""},
	{"arbiter unreachable, then back", func(f *faulty) { rejectBy(f, nil, 3*time.Second); f.x.pc.Break() }, self, ""},
	{"pause late", func(f *faulty) { f.pauseLate = true }, other, ""},
	{"pause fails", func(f *faulty) { f.pauseFails = true }, other, ""},
	{"resume fails", func(f *faulty) { f.resumeFails = true }, other, ""},
	{"disk write stuck", func(f *faulty) {
		f.stuck = make(chan struct{})
		f.x.pc.Stall()
		f.x.sc.Stall()
	}, self, event.ModePrimary},
	{"disk fails", func(f *faulty) {
		h, _ := f.x.side(f.mode)
		h.disk.Fail = func(c colotest.Call) error {
			if c.Name == "failover" || c.Name == "stop" {
				return nil
			}
			return errFault
		}
	}, other, ""},
	{"network hook fails", func(f *faulty) { f.netFails = true }, other, ""},
	{"device save fails", func(f *faulty) { f.saveFails = true }, other, event.ModePrimary},
	{"device load refused", func(f *faulty) { f.loadFails = true }, other, event.ModeSecondary},
	{"goodbye", func(f *faulty) { _, r := f.x.side(f.mode); r.End() }, self, ""},
}

// faultAt runs a pair until the fault at a step of one side has ended it, or
// checkpoint 2 is whole and the link is cut.
func faultAt(t *testing.T, f fault, when moment, guest colotest.VMConfig) (x *pair, hit bool) {
	pctx, pcancel := context.WithCancel(t.Context())
	sctx, scancel := context.WithCancel(t.Context())
	defer pcancel()
	defer scancel()
	pf := &faulty{mode: event.ModePrimary, ctx: pcancel}
	sf := &faulty{mode: event.ModeSecondary, ctx: scancel}
	turn := make(chan struct{}, 1)
	step := func(side *faulty) func(string, uint64) {
		return func(op string, epoch uint64) {
			h, _ := x.side(side.mode)
			h.step(1)
			if when != (moment{side.mode, op, epoch}) || hit {
				return
			}
			turn <- struct{}{}
			defer func() { <-turn }()
			hit = true
			// The other side goes as far as it can first, so that each run of
			// the test injects the fault into one and the same state.
			synctest.Wait()
			f.inject(side)
			synctest.Wait()
		}
	}
	x = newPair(t, options{
		guest: guest,
		primary: func(c *colo.PrimaryConfig) {
			c.Step, c.VM, c.Net = step(pf), faultyVM{c.VM, pf}, faultyNet{c.Net.(*colotest.Network), pf}
			c.Disks = replication.Group{faultyDisk{c.Disks[0].(*colotest.Disk), pf}}
			if err := c.State.Register(vmstate.Entry{Name: "faulty"}, &faultyDevice{f: pf}); err != nil {
				t.Fatal(err)
			}
		},
		secondary: func(c *colo.SecondaryConfig) {
			c.Step, c.VM, c.Net = step(sf), faultyVM{c.VM, sf}, faultyNet{c.Net.(*colotest.Network), sf}
			c.Disks = replication.Group{faultyDisk{c.Disks[0].(*colotest.Disk), sf}}
			if err := c.State.Register(vmstate.Entry{Name: "faulty"}, &faultyDevice{f: sf}); err != nil {
				t.Fatal(err)
			}
		},
	})
	pf.x, sf.x = x, x
	winner := f.winner(when.mode)
	x.witness.Deny = func(c colo.Claim) error {
		if c.Mode == winner {
			return nil
		}
		if winner == event.ModeSecondary && len(x.s.net.Calls()) == 0 {
			// It has no guest yet. One that has ended without one never asks.
			select {
			case <-x.s.done:
				return nil
			default:
				return context.DeadlineExceeded
			}
		}
		return colotest.ErrHeld
	}
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == 3 {
			x.pc.Break()
		}
	})()
	x.s.run(sctx, x.secondary)
	x.p.run(pctx, x.primary)
	x.wait()
	return x, hit
}

// ended says in a word how a side ended.
func ended(err error) string {
	for _, c := range []struct {
		target error
		word   string
	}{
		{failover.ErrTorn, "torn"}, {colo.ErrNotPaused, "not-paused"}, {colo.ErrNotResumed, "not-resumed"},
		{colo.ErrRefused, "refused"}, {colo.ErrDegraded, "degraded"}, {context.Canceled, "cancelled"},
		{colo.ErrGoodbye, "goodbye"},
	} {
		if errors.Is(err, c.target) {
			return c.word
		}
	}
	if err != nil {
		return "failed"
	}
	return "nil"
}

func TestOutcomesOfEachFaultAtEachStep(t *testing.T) {
	some := testing.Short() && !raceEnabled
	var table []string
	synctest.Test(t, func(t *testing.T) {
		var list []moment
		x := watched(t, manners[0], func(_ *pair, at moment) {
			if at.epoch <= 1 && !slices.Contains(list, at) && at.op != "take over" {
				list = append(list, at)
			}
		}, options{})
		x.close()
		slices.SortStableFunc(list, func(a, b moment) int { return strings.Compare(string(a.mode), string(b.mode)) })
		for _, f := range faults {
			for i, when := range list {
				if some && i%29 != 0 {
					continue
				}
				if f.only != "" && f.only != when.mode {
					continue
				}
				x, hit := faultAt(t, f, when, small)
				if !hit {
					t.Errorf("%s at %v: it did not come to that", f.name, when)
				}
				runs := "none"
				switch p, s := !x.p.guest.Paused(), !x.s.guest.Paused(); {
				case p && s:
					runs = "both"
				case p:
					runs = "primary"
				case s:
					runs = "secondary"
				}
				for _, h := range []*host{x.p, x.s} {
					_, r := x.side(event.Mode(h.name))
					if alone := r.Info().State == colo.StateAlone; alone == h.guest.Paused() && ended(h.err) != "not-paused" {
						t.Errorf("%s at %v: the %s says %v, its guest is paused: %t", f.name, when, h.name, r.Info().State, h.guest.Paused())
					}
				}
				table = append(table, fmt.Sprintf("%-31s %-9s %d %-25s  %-9s  %-9s %s", f.name, when.mode, when.epoch, when.op, runs, ended(x.p.err), ended(x.s.err)))
				if runs == "primary" || runs == "secondary" {
					// Its output and writes pass, nothing that is held is left, and
					// a client of the guest has seen one history.
					h := x.wantWhole(t)
					if n := h.net.Held(); n != 0 {
						t.Errorf("%d frames are held for ever", n)
					}
				}
				if t.Failed() {
					t.Fatalf("%s at %v: primary %v, secondary %v", f.name, when, x.p.err, x.s.err)
				}
				x.close()
			}
		}
	})
	head := "# fault                         side      epoch, step                  runs       primary   secondary ended with"
	b, err := os.ReadFile(outcomes)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string][]string)
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if !strings.HasPrefix(line, "#") {
			want[line[:outcomeKey]] = append(want[line[:outcomeKey]], line)
		}
	}
	all := []string{head}
	for _, line := range table {
		key := line[:outcomeKey]
		if !slices.Contains(want[key], line) {
			if !*update {
				t.Errorf("a session ended otherwise:\n  %s\nexpected:\n  %s", line, strings.Join(want[key], "\n  "))
			}
			want[key] = append(want[key], line)
			slices.Sort(want[key])
		}
		all = append(all, want[key]...)
		delete(want, key)
	}
	for key := range want {
		if !*update && !some {
			t.Errorf("no session came to: %s", key)
		}
	}
	if *update {
		if err := os.WriteFile(outcomes, []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// held returns how many descriptors this process has open, and how many bytes of
// memory it has mapped.
func held(t *testing.T) (descriptors int, mapped uint64) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no list of descriptors: %v", err)
	}
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("no size of the process: %v", err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(b), &pages); err != nil {
		t.Fatal(err)
	}
	return len(fds), pages * uint64(os.Getpagesize())
}

// Each run maps the memory of two guests and a cache as large, of 16 MiB. What the Go heap
// grows by meanwhile is far less than a few of them.
func TestNoFaultLeavesADescriptorOrAMapping(t *testing.T) {
	if testing.Short() {
		t.Skip("it maps gigabytes")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(100)) // the heap stays small
	guest := small
	guest.Memory = 16 << 20
	var list []moment
	run := func() {
		synctest.Test(t, func(t *testing.T) {
			for i, f := range faults {
				of := slices.DeleteFunc(slices.Clone(list), func(m moment) bool { return f.only != "" && f.only != m.mode })
				x, hit := faultAt(t, f, of[(i*7)%len(of)], guest)
				if !hit {
					t.Errorf("%s: it did not come to that", f.name)
				}
				x.close()
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		watched(t, manners[0], func(_ *pair, at moment) {
			if at.epoch <= 1 && !slices.Contains(list, at) && at.op != "take over" {
				list = append(list, at)
			}
		}, options{}).close()
	})
	run() // what is kept for ever is there from now on
	fds, mapped := held(t)
	for again := 2; ; again-- { // a leak grows with each run, what the Go runtime maps once does not
		run()
		runtime.GC()
		f, m := held(t)
		if f <= fds && m <= mapped+128<<20 {
			return
		}
		if again == 0 {
			t.Fatalf("%d descriptors before the last run, %d after; %d MiB mapped before, %d after", fds, f, mapped>>20, m>>20)
		}
		fds, mapped = f, m
	}
}
