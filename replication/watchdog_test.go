package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// hangingDisk is a disk whose operations can be made to hang until it is released.
type hangingDisk struct {
	*fakeDisk
	hangs    atomic.Value // string: what hangs, "read", "write" or "sync"
	release  chan struct{}
	released sync.Once
	late     atomic.Int64 // the writes that were made after they had hung
}

func newHanging(t *testing.T, fill byte) *hangingDisk {
	d := &hangingDisk{fakeDisk: newFake(testSize, fill), release: make(chan struct{})}
	t.Cleanup(d.letGo)
	return d
}

func (d *hangingDisk) letGo() { d.released.Do(func() { close(d.release) }) }

func (d *hangingDisk) hang(what string) (hung bool) {
	if d.hangs.Load() == what {
		<-d.release
		return true
	}
	return false
}

func (d *hangingDisk) ReadAt(p []byte, off int64) (int, error) {
	d.hang("read")
	return d.fakeDisk.ReadAt(p, off)
}

func (d *hangingDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.hang("write") {
		d.late.Add(1)
	}
	return d.fakeDisk.WriteAt(p, off)
}

func (d *hangingDisk) Sync() error {
	d.hang("sync")
	return d.fakeDisk.Sync()
}

// hungRig is a pair that runs, either of whose disks can hang.
type hungRig struct {
	local, disk *hangingDisk
	p           *Primary
	s           *Secondary
	failed      *[]event.DiskFailed
}

// hungSoon is the HungAfter of most tests; a flush has three times as long.
const hungSoon = 10 * time.Second

func newHungRig(t *testing.T, hungAfter time.Duration) *hungRig {
	t.Helper()
	r := &hungRig{local: newHanging(t, 0x11), disk: newHanging(t, 0x11)}
	bus, failed := heard[event.DiskFailed]()
	r.failed = failed
	var err error
	r.p, err = NewPrimary(r.local, PrimaryConfig{Name: "disk0", InSync: true, Events: bus, HungAfter: hungAfter})
	must(t, err)
	r.s, err = NewSecondary(r.disk, SecondaryConfig{Name: "disk0", Events: bus, HungAfter: hungAfter})
	must(t, err)
	must(t, r.p.Attach(newFakeRemote(r.s.Export(), 1)))
	must(t, r.p.Mark(t.Context(), 0))
	must(t, r.s.Start(t.Context()))
	must(t, r.p.Loaded(t.Context(), 0))
	must(t, r.p.Start(t.Context()))
	return r
}

// wantHung asserts that err says which device hangs, and that the context has ended.
func wantHung(t *testing.T, what string, err error, mode event.Mode, device, op string) {
	t.Helper()
	var e *HungError
	if !errors.Is(err, ErrHung) || !errors.Is(err, syscall.EIO) || !errors.As(err, &e) {
		t.Fatalf("%s: error %v, want ErrHung", what, err)
	}
	if e.Mode != mode || e.Disk != "disk0" || e.Device != device || e.Op != op || e.For < hungSoon {
		t.Errorf("%s: %+v", what, *e)
	}
	for _, word := range []string{"disk0", string(mode), device, op, "s and is waited"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q does not say %q", what, err, word)
		}
	}
}

func TestACallEndsWithItsContextThoughTheDiskHangs(t *testing.T) {
	type call struct {
		what string
		mode event.Mode
		op   string // which hangs
		do   func(context.Context, *hungRig) error
	}
	var calls []call
	primary := func(what, op string, do func(context.Context, *Primary) error) {
		calls = append(calls, call{"Primary." + what, event.ModePrimary, op, func(ctx context.Context, r *hungRig) error { return do(ctx, r.p) }})
	}
	secondary := func(what, op string, do func(context.Context, *Secondary) error) {
		calls = append(calls, call{"Secondary." + what, event.ModeSecondary, op, func(ctx context.Context, r *hungRig) error { return do(ctx, r.s) }})
	}
	primary("Mark", "sync", func(ctx context.Context, p *Primary) error { return p.Mark(ctx, 1) })
	primary("Synchronise", "read", func(ctx context.Context, p *Primary) error {
		p.peer.all()
		return p.Synchronise(ctx, SyncConfig{})
	})
	primary("VerifyOnline", "read", func(ctx context.Context, p *Primary) error {
		_, err := p.VerifyOnline(ctx, VerifyConfig{Secondary: newFake(testSize, 0x11)})
		return err
	})
	secondary("Prepare", "sync", func(ctx context.Context, s *Secondary) error { return s.Prepare(ctx, 1) })
	secondary("Checkpoint", "sync", func(ctx context.Context, s *Secondary) error { return s.Checkpoint(ctx, 1) })
	secondary("Stop with failover", "sync", func(ctx context.Context, s *Secondary) error { return s.Stop(ctx, true) })
	secondary("Stop without failover", "sync", func(ctx context.Context, s *Secondary) error { return s.Stop(ctx, false) })
	secondary("Commit", "sync", func(ctx context.Context, s *Secondary) error {
		return errors.Join(s.PrepareFailover(context.WithoutCancel(ctx)), s.Commit(ctx))
	})
	names := map[string]string{"sync": opFlush, "read": "read", "write": "write"}
	for _, c := range calls {
		for _, end := range []error{context.Canceled, context.DeadlineExceeded, nil} {
			t.Run(fmt.Sprint(c.what, ", ", end), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newHungRig(t, hungSoon)
					disk := r.local
					if c.mode == event.ModeSecondary {
						disk = r.disk
					}
					write(t, r.p, 0x22, 0, BlockSize) // there is something to make stable
					_, err := r.s.Export().WriteAt(make([]byte, BlockSize), 0)
					must(t, err)
					disk.hangs.Store(c.op)
					ctx := context.Background()
					switch end {
					case context.Canceled:
						with, cancel := context.WithCancel(ctx)
						time.AfterFunc(time.Minute, cancel)
						ctx = with
					case context.DeadlineExceeded:
						with, cancel := context.WithTimeout(ctx, time.Minute)
						defer cancel()
						ctx = with
					}
					begin := time.Now()
					err = c.do(ctx, r)
					wantHung(t, c.what, err, c.mode, "disk", names[c.op])
					took := time.Since(begin)
					switch {
					case end == nil && (errors.Is(err, context.Canceled) || took > 30*time.Second):
						t.Errorf("without an end of the context: %v after %v", err, took)
					case end != nil && (!errors.Is(err, end) || took != time.Minute):
						t.Errorf("%v after %v, want it to match %v after a minute", err, took, end)
					}
					if len(*r.failed) != 1 || (*r.failed)[0].Operation != names[c.op] || (*r.failed)[0].Disk != "disk0" || (*r.failed)[0].Mode != c.mode {
						t.Errorf("told %+v", *r.failed)
					}

					// Nothing is waited for, nor acknowledged, from now on.
					begin = time.Now()
					wantErr(t, "again", c.do(context.Background(), r), ErrHung)
					ask := map[string]func() error{
						"Primary.Err":      r.p.Err,
						"Primary.LocalErr": r.p.LocalErr,
						"Primary.Sync":     r.p.Sync,
						"Primary.Stop":     func() error { return r.p.Stop(context.Background(), true) },
					}
					if c.mode == event.ModeSecondary {
						ask = map[string]func() error{
							"Secondary.Err":      r.s.Err,
							"Secondary.LocalErr": r.s.LocalErr,
							"Export.Sync":        r.s.Export().Sync,
							"Secondary.Stop":     func() error { return r.s.Stop(context.Background(), true) },
						}
						if r.s.State() != Running {
							delete(ask, "Export.Sync")
						}
					}
					for what, do := range ask {
						wantErr(t, what, do(), ErrHung)
					}
					if took := time.Since(begin); took != 0 {
						t.Errorf("they waited for %v", took)
					}

					// What hangs is waited for when it returns at last.
					soon, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					waitHung := r.p.WaitHung
					if c.mode == event.ModeSecondary {
						waitHung = r.s.WaitHung
					}
					wantErr(t, "WaitHung of a disk that hangs", waitHung(soon), context.DeadlineExceeded)
					epoch := r.s.Epoch()
					disk.letGo()
					must(t, waitHung(context.Background()))
					if r.s.Epoch() != epoch || c.mode == event.ModeSecondary && r.s.State() == Done {
						t.Errorf("a call that was given up has had an effect: epoch %d, %v", r.s.Epoch(), r.s.State())
					}
					wantErr(t, "after it has returned", c.do(context.Background(), r), ErrHung)
				})
			})
		}
	}
}

func TestADiskThatIsOnlySlowIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHungRig(t, hungSoon)
		write(t, r.p, 0x22, 0, BlockSize)
		r.local.hangs.Store("sync")
		time.AfterFunc(29*time.Second, r.local.letGo)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.p.Mark(ctx, 1); errors.Is(err, ErrHung) {
			t.Errorf("a flush that took 29 s: %v", err)
		}
		must(t, r.p.LocalErr())
	})
}

// A SAN may take half a minute until it has found another path.
func TestADiskHasAMinuteWhereNothingElseIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHungRig(t, 0)
		r.local.hangs.Store("write")
		go r.p.WriteAt(make([]byte, BlockSize), 0)
		synctest.Wait()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.p.Mark(ctx, 1)
		wantHung(t, "Mark", err, event.ModePrimary, "disk", "write")
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("it took %v", took)
		}
		r.local.letGo()
		must(t, r.p.WaitHung(t.Context()))
	})
}

func TestNoWriteOfAGuestIsAnsweredOnceItsDiskWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHungRig(t, hungSoon)
		r.local.hangs.Store("write")
		answer := make(chan error, 1)
		go func() {
			_, err := r.p.WriteAt(make([]byte, BlockSize), 0)
			answer <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.p.Mark(ctx, 1) // it waits for the write, which belongs to its epoch
		wantHung(t, "Mark", err, event.ModePrimary, "disk", "write")
		select {
		case err := <-answer:
			t.Fatalf("the write was answered: %v", err)
		default:
		}
		r.local.letGo()
		wantErr(t, "the write that was made late", <-answer, ErrHung)
		must(t, r.p.WaitHung(t.Context()))
		if r.local.late.Load() != 1 {
			t.Fatal("the write was not late")
		}
		_, err = r.p.WriteAt(make([]byte, BlockSize), 0)
		wantErr(t, "the next write", err, ErrHung)
		_, err = r.p.ReadAt(make([]byte, BlockSize), 0)
		wantErr(t, "the next read", err, ErrHung)
	})
}

// A stop waits for each disk as long as for one, and names those that hang.
func TestADiskThatHangsHoldsUpTheStopOfNoOther(t *testing.T) {
	for _, failover := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			var all []*hungRig
			for range 4 {
				r := newHungRig(t, hungSoon)
				all = append(all, r)
				g = append(g, r.s)
				_, err := r.s.Export().WriteAt(make([]byte, BlockSize), 0)
				must(t, err)
				write(t, r.s, 0x22, 0, BlockSize)
			}
			all[0].disk.hangs.Store("sync")
			all[2].disk.hangs.Store("sync")
			begin := time.Now()
			err := g.Stop(context.WithoutCancel(t.Context()), failover)
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("the stop took %v", took)
			}
			for i, r := range all {
				hangs := i%2 == 0
				if named := strings.Contains(err.Error(), fmt.Sprintf("disk %d: stop", i)); named != hangs {
					t.Errorf("disk %d hangs: %v; the error is %v", i, hangs, err)
				}
				if done := r.s.State() == Done; done == hangs {
					t.Errorf("disk %d hangs: %v; it is %v", i, hangs, r.s.State())
				}
			}
			wantErr(t, "the stop", err, ErrHung)
			for _, r := range all {
				r.disk.letGo()
				must(t, r.s.WaitHung(t.Context()))
			}
		})
	}
}

func TestAJournalThatHangsEndsWhatWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hidden, active := newHanging(t, 0), newHanging(t, 0)
		j, err := OpenJournal(hidden, active)
		must(t, err)
		disk := newFake(testSize, 0x11)
		s, err := NewSecondary(disk, SecondaryConfig{Name: "disk0", Journal: j})
		must(t, err)
		p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{InSync: true})
		must(t, err)
		protectFirst(t, p, s)
		hidden.hangs.Store("write")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = s.Checkpoint(ctx, 1)
		wantHung(t, "Checkpoint", err, event.ModeSecondary, "log of pre-images", "write")
		wantErr(t, "LocalErr", s.LocalErr(), ErrHung)
		wantErr(t, "a failover", s.Stop(t.Context(), true), ErrHung)
		_, err = s.Export().WriteAt(make([]byte, BlockSize), 0)
		wantErr(t, "a write of the primary", err, ErrGated)
		hidden.letGo()
		must(t, s.WaitHung(t.Context()))
		if s.Epoch() != 0 || s.State() != Running {
			t.Errorf("epoch %d, %v", s.Epoch(), s.State())
		}
		want(t, "the disk", disk, 0x11, 0, testSize)
	})
}

// hungWhileFollowing returns a disk whose host died while it followed, and its journal, opened anew on hidden and
// active. Its writes hang.
func hungWhileFollowing(t *testing.T, hidden, active Disk) (*hangingDisk, *Journal) {
	j, err := OpenJournal(hidden, active)
	must(t, err)
	disk := newHanging(t, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{InSync: true})
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 0, BlockSize)
	must(t, p.Sync())
	p.Cut()
	disk.hangs.Store("write")
	j, err = OpenJournal(hidden, active) // the process was started again
	must(t, err)
	return disk, j
}

// Disks that are recovered together are waited for as long as the most patient of them wants.
func TestARecoveryWaitsForAHungDiskAsLongAsItIsTold(t *testing.T) {
	for _, c := range []struct{ one, two, takes time.Duration }{
		{0, 0, DefaultHungAfter}, {5 * time.Second, 2 * time.Second, 5 * time.Second}, {2 * time.Second, 5 * time.Second, 5 * time.Second},
		{5 * time.Second, 0, DefaultHungAfter}, {-1, 5 * time.Second, time.Hour}, {5 * time.Second, -1, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			disk, j := hungWhileFollowing(t, newFake(testSize, 0), newFake(testSize, 0))
			other, k := hungWhileFollowing(t, newFake(testSize, 0), newFake(testSize, 0))
			begin := time.Now()
			time.AfterFunc(time.Hour, func() { disk.letGo(); other.letGo() })
			_, _, err := RecoverGroup(context.Background(), []Recovery{{j, disk, c.one}, {k, other, c.two}})
			if took := time.Since(begin); took != c.takes || errors.Is(err, ErrHung) != (took < time.Hour) {
				t.Errorf("HungAfter %v and %v: %v, after %v", c.one, c.two, err, took)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
		})
	}
}

func TestARecoveryEndsThoughTheDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hidden, active := newFake(testSize, 0), newFake(testSize, 0)
		disk, j := hungWhileFollowing(t, hidden, active)
		for range 2 { // the second time the journal is still in use by the first
			begin := time.Now()
			_, _, err := j.Recover(context.Background(), disk)
			wantErr(t, "a recovery", err, ErrHung)
			if took := time.Since(begin); took > DefaultHungAfter {
				t.Errorf("it took %v", took)
			}
		}
		before, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _, err := RecoverGroup(before, []Recovery{{Journal: j, Disk: disk}})
		wantErr(t, "a recovery of several disks", err, ErrHung)
		disk.letGo()
		synctest.Wait()

		disk.hangs.Store("")
		j, err = OpenJournal(hidden, active)
		must(t, err)
		_, _, err = j.Recover(context.Background(), disk)
		must(t, err)
		want(t, "the disk of the checkpoint", disk, 0x11, 0, testSize)
	})
}

// Whoever waits for both disks of a pair is told of what the primary's own have not returned, and of nothing
// when it is the other side that is late.
func TestAPrimarySaysWhichOfItsOwnOperationsIsUnderWay(t *testing.T) {
	for _, whose := range []string{"primary", "secondary"} {
		synctest.Test(t, func(t *testing.T) {
			r := newHungRig(t, -1)
			disk := map[string]*hangingDisk{"primary": r.local, "secondary": r.disk}[whose]
			write(t, r.p, 0x22, 0, BlockSize)
			begun := time.Now()
			disk.hangs.Store("sync")
			done := make(chan error, 1)
			go func() { done <- r.p.Mark(context.Background(), 1) }()
			time.Sleep(time.Minute)
			device, op, since := r.p.UnderWay()
			if late := whose == "primary"; late && (device != "disk" || op != opFlush || !since.Equal(begun)) || !late && op != "" {
				t.Errorf("%s: a %s of the %s since %v", whose, op, device, since.Sub(begun))
			}
			disk.letGo()
			if err := <-done; whose == "primary" && err != nil {
				t.Error(err)
			}
			if _, op, _ := r.p.UnderWay(); op != "" {
				t.Errorf("%s: a %s is under way", whose, op)
			}
		})
	}
}
