package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

const gsize = 1 << 20

// memory is a disk in memory.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) Size() int64 { return int64(len(m.data)) }
func (m *memory) Sync() error { return nil }
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.data[off:]), nil
}
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.data[off:], p), nil
}

// faulty is a disk whose Sync fails when it is told to.
type faulty struct {
	replication.Disk
	err error
}

func (f *faulty) Sync() error {
	if f.err != nil {
		return f.err
	}
	return f.Disk.Sync()
}

// pair is a guest's disks on two hosts, over NBD connections: one in a file
// with overlays in memory, one in a file with a journal, one in memory.
type pair struct {
	t         *testing.T
	dir       string
	heard     []event.Event // of the secondary
	local     []replication.Disk
	below     []*faulty // the secondary disks
	journal   *replication.Journal
	primary   []*replication.Primary
	secondary []*replication.Secondary
	export    []*nbd.Export
	p, s      replication.Group
}

func newPair(t *testing.T) *pair {
	t.Helper()
	x := &pair{t: t, dir: t.TempDir()}
	var bus event.Bus
	bus.SubscribeAll(func(r event.Record) { x.heard = append(x.heard, r.Event) })
	file := func(name string) replication.Disk {
		f, err := replication.CreateFile(filepath.Join(x.dir, name), gsize)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	var err error
	x.journal, err = replication.OpenJournalFiles(filepath.Join(x.dir, "journal"), 4*gsize)
	must(t, err)
	t.Cleanup(func() { x.journal.Close() })
	x.local = []replication.Disk{file("p0"), file("p1"), &memory{data: make([]byte, gsize)}}
	x.below = []*faulty{{Disk: file("s0")}, {Disk: file("s1")}, {Disk: &memory{data: make([]byte, gsize)}}}
	srv := nbd.NewServer(nbd.ServerConfig{})
	for i := range x.local {
		cfg := replication.SecondaryConfig{Name: fmt.Sprint("disk", i), Events: &bus}
		if i == 1 {
			cfg.Journal = x.journal
		}
		s, err := replication.NewSecondary(x.below[i], cfg)
		must(t, err)
		e, err := srv.Export(nbd.ExportConfig{Name: cfg.Name, Generation: 1, Disk: s.Export()})
		must(t, err)
		p, err := replication.NewPrimary(x.local[i], replication.PrimaryConfig{Name: cfg.Name, Overwrite: true})
		must(t, err)
		x.primary, x.secondary, x.export = append(x.primary, p), append(x.secondary, s), append(x.export, e)
		x.p, x.s = append(x.p, p), append(x.s, s)
		x.write(p, 0x10+byte(i), 0, gsize) // differs from the secondary's
	}
	addr := serveAt(t, srv, "127.0.0.1:0")
	for i, p := range x.primary {
		c, err := nbd.Dial(context.Background(), "tcp", addr, nbd.ClientConfig{Export: x.export[i].WireName()})
		must(t, err)
		must(t, p.Attach(c))
	}
	t.Cleanup(func() { x.p.Stop(context.Background(), true) })
	return x
}

func (x *pair) write(d replication.Disk, b byte, off, n int64) {
	x.t.Helper()
	_, err := d.WriteAt(bytes.Repeat([]byte{b}, int(n)), off)
	must(x.t, err)
}

func (x *pair) want(why string, d replication.Disk, b byte, off, n int64) {
	x.t.Helper()
	p := make([]byte, n)
	_, err := d.ReadAt(p, off)
	must(x.t, err)
	wantFill(x.t, why, p, b)
}

// start synchronises and starts all disks.
func (x *pair) start() {
	x.t.Helper()
	ctx := context.Background()
	for _, p := range x.primary {
		must(x.t, p.Synchronise(ctx, replication.SyncConfig{}))
	}
	must(x.t, x.p.Mark(ctx, 0))
	must(x.t, x.s.Start(ctx))
	must(x.t, x.p.Loaded(ctx, 0))
	must(x.t, x.p.Start(ctx))
}

// epoch has the primary's guest write all disks, and both sides checkpoint it.
func (x *pair) epoch(n uint64) error {
	x.t.Helper()
	ctx := context.Background()
	for i, p := range x.primary {
		x.write(p, byte(n)<<4+byte(i), 0, gsize/2)
	}
	must(x.t, x.p.Mark(ctx, n))
	if err := x.s.Checkpoint(ctx, n); err != nil {
		return err
	}
	return x.p.Loaded(ctx, n)
}

func TestDisksOfOneGuestShareTheirEpochs(t *testing.T) {
	ctx := context.Background()
	x := newPair(t)
	x.start()
	for i, s := range x.secondary {
		x.want("the start", s, 0x10+byte(i), 0, gsize)
	}
	for n := range uint64(4) {
		must(t, x.epoch(n+2))
		for i, s := range x.secondary {
			if s.Epoch() != n+2 {
				t.Errorf("disk %d is at epoch %d, want %d", i, s.Epoch(), n+2)
			}
			x.want("the checkpoint", s, byte(n+2)<<4+byte(i), 0, gsize/2)
			x.want("what was not written", s, 0x10+byte(i), gsize/2, gsize/2)
		}
	}

	// Failover of all, with the guest's own writes.
	for i, s := range x.secondary {
		x.write(x.primary[i], 0xee, 0, gsize)
		must(t, x.primary[i].Sync())
		x.write(s, 0xa0+byte(i), 4096, 4096)
	}
	for _, e := range x.export {
		must(t, e.Close(ctx))
	}
	must(t, x.s.Stop(ctx, true))
	for i, d := range x.below {
		x.want("the last checkpoint", d, 0x50+byte(i), 0, 4096)
		x.want("the guest's own write", d, 0xa0+byte(i), 4096, 4096)
		x.want("the last checkpoint", d, 0x50+byte(i), 8192, gsize/2-8192)
		x.want("what the primary wrote since is undone", d, 0x10+byte(i), gsize/2, gsize/2)
	}
	if st, epoch := x.journal.State(); st != replication.Done || epoch != 5 {
		t.Errorf("the journal says %v", x.journal)
	}
}

func TestDisksOfOneGuestStartTogetherOrNotAtAll(t *testing.T) {
	ctx := context.Background()
	x := newPair(t)
	for _, p := range x.primary[:2] {
		must(t, p.Synchronise(ctx, replication.SyncConfig{}))
	}
	err := x.p.Start(ctx) // the third disk is not a copy
	wantMember(t, err, 2, "start", replication.ErrNotSynchronised)
	for i, p := range x.primary {
		if p.State() == replication.Running {
			t.Errorf("disk %d is replicated without the others", i)
		}
	}
	wantMember(t, x.p.Start(ctx), 0, "start", replication.ErrNotSynchronised) // rather than without its secondary

	x.below[2].err = errors.New("no more power")
	wantMember(t, x.s.Start(ctx), 2, "start", x.below[2].err)
	for i, s := range x.secondary {
		if s.State() == replication.Running {
			t.Errorf("the secondary's disk %d is replicated without the others", i)
		}
	}
	cause := x.below[2].err
	x.below[2].err = nil // what its failed sync has lost, it would not tell
	wantMember(t, x.s.Start(ctx), 2, "start", cause)
	for i, s := range x.secondary {
		if s.State() == replication.Running {
			t.Errorf("the secondary's disk %d is replicated without the others", i)
		}
	}
}

func wantMember(t *testing.T, err error, index int, op string, cause error) {
	t.Helper()
	var me *replication.MemberError
	if !errors.As(err, &me) || me.Index != index || me.Op != op || !errors.Is(err, cause) {
		t.Errorf("error %v, want the %s of disk %d: %v", err, op, index, cause)
	}
}

func TestCheckpointThatFailsOnADiskIsMadeOnNone(t *testing.T) {
	ctx := context.Background()
	fail := func(x *pair, disks ...int) (errs []error) {
		for _, i := range disks {
			x.below[i].err = fmt.Errorf("bad sector on disk %d", i)
			errs = append(errs, x.below[i].err)
		}
		return errs
	}
	for _, tc := range []struct {
		why    string
		bad    []int
		fault  func(*pair) []error
		marked bool // the primary has not noticed
	}{
		{"the first disk", []int{0}, func(x *pair) []error { return fail(x, 0) }, false},
		{"the last two", []int{1, 2}, func(x *pair) []error { return fail(x, 1, 2) }, false},
		{"the journal of the second", []int{1}, func(x *pair) []error {
			must(t, x.journal.Close())
			return []error{os.ErrClosed}
		}, true},
	} {
		x := newPair(t)
		x.start()
		must(t, x.epoch(2))
		var causes []error
		if !tc.marked {
			causes = tc.fault(x)
		}
		for _, p := range x.primary {
			x.write(p, 0x22, 0, 8192) // pre-images are there already
			x.write(p, 0x77, gsize/2, 8192)
		}
		err := x.p.Mark(ctx, 3)
		if tc.marked {
			must(t, err)
			causes = tc.fault(x)
		} else {
			for _, i := range tc.bad {
				if x.primary[i].Err() == nil || !errors.Is(err, replication.ErrBroken) {
					t.Errorf("%s: mark of disk %d: %v, want that it is broken", tc.why, i, err)
				}
			}
		}
		err = x.s.Checkpoint(ctx, 3) // even so
		for _, cause := range causes {
			if !errors.Is(err, cause) {
				t.Errorf("%s: checkpoint: %v, want %v", tc.why, err, cause)
			}
		}
		wantMember(t, err, tc.bad[0], "prepare", causes[0])
		wantMember(t, x.s.Err(), tc.bad[0], "run", causes[0])
		for i, s := range x.secondary {
			if s.Epoch() != 2 {
				t.Errorf("%s: disk %d has a checkpoint that another could not make", tc.why, i)
			}
			if i != 1 || !tc.marked { // the journal has the pre-images
				x.want("the last checkpoint", s, 0x10+byte(i), gsize/2, 8192)
			}
		}
		if st, epoch := x.journal.State(); st != replication.Running || epoch != 2 {
			t.Errorf("%s: the journal says %v", tc.why, x.journal)
		}
		var broken []string
		for _, e := range x.heard {
			if b, ok := e.(event.DiskBroken); ok && b.Mode == event.ModeSecondary {
				broken = append(broken, b.Disk)
			}
		}
		slices.Sort(broken)
		var want []string
		for _, i := range tc.bad {
			want = append(want, fmt.Sprint("disk", i))
		}
		if !slices.Equal(broken, want) {
			t.Errorf("%s: events say that %v are broken, want %v", tc.why, broken, want)
		}
	}
}

// The process of a secondary with two journaled disks is killed between the
// checkpoints of the one and of the other.
func TestDisksOfAKilledSecondaryAreRecoveredToOneEpoch(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	var opened []io.Closer
	closeAll := func() { // as the kernel does when a process ends
		for _, c := range opened {
			must(t, c.Close())
		}
		opened = nil
	}
	defer closeAll()
	open := func() (list []replication.Recovery, disks []replication.Disk) {
		closeAll()
		for i := range 2 {
			d, err := replication.CreateFile(filepath.Join(dir, fmt.Sprint("s", i)), gsize)
			must(t, err)
			j, err := replication.OpenJournalFiles(filepath.Join(dir, fmt.Sprint("j", i)), 4*gsize)
			must(t, err)
			opened = append(opened, d, j)
			list, disks = append(list, replication.Recovery{Journal: j, Disk: d}), append(disks, d)
		}
		return list, disks
	}
	for _, prepared := range []bool{false, true} {
		x := &pair{t: t}
		list, disks := open()
		var g replication.Group
		var members []*replication.Secondary
		for i, r := range list {
			x.write(disks[i], 0x11, 0, gsize)
			s, err := replication.NewSecondary(r.Disk, replication.SecondaryConfig{Journal: r.Journal})
			must(t, err)
			g, members = append(g, s), append(members, s)
		}
		must(t, g.Start(ctx))
		for _, s := range members {
			x.write(s.Export(), 0x22, 0, gsize/2)
		}
		must(t, g.Checkpoint(ctx, 1))
		for _, s := range members {
			x.write(s.Export(), 0x33, 0, gsize/2)
			x.write(s, 0x44, gsize/2, 4096)
		}
		// What g.Checkpoint does, up to the kill.
		if prepared {
			must(t, g.Prepare(ctx, 2))
			must(t, members[1].Checkpoint(ctx, 2))
		} else {
			must(t, members[0].Prepare(ctx, 2))
		}
		list, disks = open()
		epoch, failedOver, err := replication.RecoverGroup(ctx, list)
		must(t, err)
		wantEpoch, b := uint64(1), byte(0x22)
		if prepared {
			wantEpoch, b = 2, 0x33
		}
		if epoch != wantEpoch || failedOver {
			t.Errorf("recovered to epoch %d, failover %v, want %d", epoch, failedOver, wantEpoch)
		}
		for _, d := range disks {
			x.want("the checkpoint", d, b, 0, gsize/2)
			x.want("what the secondary's guest wrote is gone", d, 0x11, gsize/2, gsize/2)
		}
		for i := range 2 {
			must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprint("j", i, ".hidden"))))
			must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprint("j", i, ".active"))))
		}
	}
}
