package replication

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// verifyRig returns a pair that runs, of which the copies differ in two chunks.
func verifyRig(t *testing.T, bus *event.Bus) (p *Primary, s *Secondary, local, disk *fakeDisk) {
	t.Helper()
	local, disk = newFake(testSize, 0x11), newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true, Name: "d", Events: bus, Forward: ForwarderConfig{WindowBytes: 4 * ChunkSize}})
	must(t, err)
	s, err = NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	must(t, p.Attach(newFakeRemote(s.Export(), 1)))
	must(t, p.Mark(t.Context(), 0))
	must(t, s.Start(t.Context()))
	must(t, p.Loaded(t.Context(), 0))
	must(t, p.Start(t.Context()))
	disk.data[3*ChunkSize+5]++
	disk.data[7*ChunkSize]++
	return p, s, local, disk
}

func TestVerifyOnlineFindsAndRepairsWhatDiffers(t *testing.T) {
	ctx := context.Background()
	for _, bySums := range []bool{true, false} {
		for _, repair := range []Repair{RepairNone, RepairSecondary, RepairPrimary} {
			bus, heard := heard[event.DiskVerified]()
			p, s, local, disk := verifyRig(t, bus)
			before := bytes.Clone(disk.data)
			cfg := VerifyConfig{Secondary: s.Export(), Repair: repair}
			if bySums {
				cfg.Sums = NewSums(s.Export())
			}
			differ, err := p.VerifyOnline(ctx, cfg)
			must(t, err)
			if !differ.Any(3*ChunkSize, 1) || !differ.Any(7*ChunkSize, 1) || differ.Bytes() != 2*ChunkSize {
				t.Errorf("%d bytes differ, want the chunks 3 and 7", differ.Bytes())
			}
			must(t, p.Mark(ctx, 1))
			repaired := int64(2 * ChunkSize)
			switch repair {
			case RepairNone:
				repaired = 0
				wantBytes(t, "the secondary, as it was", disk.data, before, 0)
			case RepairSecondary:
				want(t, "the secondary", disk, 0x11, 0, testSize)
				want(t, "its guest's view", s, 0x11, 0, 3*ChunkSize)
			case RepairPrimary:
				wantBytes(t, "the primary", local.data, before, 0)
			}
			if e := (*heard)[0]; e != (event.DiskVerified{Disk: "d", Compared: testSize, Different: 2 * ChunkSize, Repaired: repaired, ElapsedNS: e.ElapsedNS}) {
				t.Errorf("heard %+v", e)
			}
		}
	}
}

// A repair of the primary is a change of its disk as a write of the guest is: the secondary may undo what it has, so
// that the chunk has to count as written before it is.
func TestARepairOfThePrimaryIsRecordedBeforeItIsMade(t *testing.T) {
	ctx := t.Context()
	p, s, local, disk := verifyRig(t, nil)
	dev := newMetaDevice(testSize)
	m, err := OpenMetadata(dev)
	must(t, err)
	must(t, m.Hold(1))
	p.peer.intent, err = m.openIntent(testSize)
	must(t, err)
	written := 0
	local.failWrite = func(off int64, n int) error {
		written++
		again, err := openIntent(newStableDisk(dev, "metadata"), testSize) // as the next process reads it
		must(t, err)
		stable := NewBitmap(testSize)
		again.marked(stable.Set)
		if now := p.Info().LagBytes; now == 0 || !p.peer.epoch.Any(off, int64(n)) || !stable.Any(off, int64(n)) {
			t.Errorf("the repair of %d at %d is made before it is recorded: lag %d bytes", n, off, now)
		}
		return nil
	}
	_, err = p.VerifyOnline(ctx, VerifyConfig{Secondary: s.Export(), Repair: RepairPrimary})
	must(t, err)
	if written != 2 {
		t.Errorf("%d writes, want one for each chunk that differs", written)
	}
	wantBytes(t, "the primary", local.data, disk.data, 0)
	local.failWrite = nil
	must(t, p.Stop(ctx, true))
	if n := p.Dirty(); n != 2*ChunkSize {
		t.Errorf("the next secondary lacks %d bytes, want what was repaired", n)
	}
}

// A secondary whose session has ended goes back to its checkpoint, and lacks what it is known to lack. That is no
// difference that anybody has to look into.
func TestWhatASecondaryIsKnownToLackDoesNotDiffer(t *testing.T) {
	ctx := t.Context()
	p, s, _, disk := verifyRig(t, nil)
	copy(disk.data, bytes.Repeat([]byte{0x11}, testSize))
	write(t, p, 0x22, 3*ChunkSize, ChunkSize)
	reads := 0
	differ, err := p.VerifyOnline(ctx, VerifyConfig{Secondary: readerFunc(func(b []byte, off int64) (int, error) {
		if reads++; reads == 1 {
			must(t, p.Stop(ctx, true))
			must(t, s.Stop(ctx, false)) // which takes back what it had of the last write
			return disk.ReadAt(b, off)
		}
		return s.Export().ReadAt(b, off)
	})})
	wantErr(t, "the rest", err, ErrNotRunning)
	if !differ.Empty() || reads != 1 {
		t.Errorf("%d bytes differ after %d reads, want none, and what is missing to be missing", differ.Bytes(), reads)
	}
	if n := p.Dirty(); n != ChunkSize {
		t.Errorf("the secondary lacks %d bytes, want the chunk that was written", n)
	}
}

// While the guest writes and checkpoints are made, what differs is found, and nothing else.
func TestVerifyOnlineUnderLoad(t *testing.T) {
	const spoilt = 5 * ChunkSize // no writer writes this sector
	for name, with := range readings {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			p, s, _, disk := verifyRig(t, nil)
			copy(disk.data, bytes.Repeat([]byte{0x11}, testSize))
			stop := make(chan struct{})
			var wg sync.WaitGroup
			runCtx, cancel := context.WithCancel(ctx)
			wg.Go(func() { p.Run(runCtx) })
			for w := range uint64(3) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(w, 0))
					for {
						select {
						case <-stop:
							return
						default:
							if off := rng.Int64N(testSize/512) * 512; off != spoilt {
								write(t, p, byte(rng.Uint32()), off, 512)
							}
						}
					}
				})
			}
			wg.Go(func() {
				for epoch := uint64(1); ; epoch++ {
					select {
					case <-stop:
						return
					default:
						checkpointBoth(t, p, s, epoch)
					}
				}
			})
			for i := range 6 {
				want := int64(0)
				if i%2 == 1 {
					want = ChunkSize
					disk.mu.Lock()
					disk.data[spoilt]++
					disk.mu.Unlock()
				}
				cfg, _ := with(s, func(int) error { return nil })
				cfg.Repair = RepairSecondary
				differ, err := p.VerifyOnline(ctx, cfg)
				if err != nil || differ.Bytes() != want || want > 0 && !differ.Any(spoilt, 1) {
					t.Errorf("%d bytes differ, want %d, %v", differ.Bytes(), want, err)
				}
			}
			close(stop)
			cancel()
			wg.Wait()
		})
	}
}

func TestVerifyOnlineEndsWithItsContextAndItsRemote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _, _ := verifyRig(t, nil)
		cfg := VerifyConfig{Secondary: s.Export()}
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.VerifyOnline(canceled, cfg)
		wantErr(t, "a context that has ended", err, context.Canceled)
		must(t, p.Mark(t.Context(), 1))
		write(t, p, 0x22, 0, 512) // is held: the verification waits for Loaded
		ended := make(chan error)
		go func() { _, err := p.VerifyOnline(t.Context(), cfg); ended <- err }()
		synctest.Wait()
		p.Cut()
		wantErr(t, "cut", <-ended, ErrCut)
		must(t, p.Stop(t.Context(), true))
		_, err = p.VerifyOnline(t.Context(), cfg)
		wantErr(t, "nobody to compare with", err, ErrNotRunning)
		_, err = p.VerifyOnline(t.Context(), VerifyConfig{})
		if err == nil {
			t.Error("nothing to read the secondary with, and no error")
		}
	})
}

// reading is what VerifyConfig reads with, and calls a function before each read.
type reading struct {
	of     io.ReaderAt
	before func(count int) error // of this read, from 1 on
	count  int
}

func (r *reading) ReadAt(p []byte, off int64) (int, error) {
	r.count++
	if err := r.before(r.count); err != nil {
		return 0, err
	}
	return r.of.ReadAt(p, off)
}

// readings are the two ways in which the secondary is read.
var readings = map[string]func(s *Secondary, before func(int) error) (VerifyConfig, *reading){
	"by sums": func(s *Secondary, before func(int) error) (VerifyConfig, *reading) {
		r := &reading{of: NewSums(s.Export()), before: before}
		return VerifyConfig{Sums: r, Secondary: s.Export()}, r
	},
	"by bytes": func(s *Secondary, before func(int) error) (VerifyConfig, *reading) {
		r := &reading{of: s.Export(), before: before}
		return VerifyConfig{Secondary: r}, r
	},
}

// verifying returns what VerifyOnline has returned, once the channel is closed.
func verifying(ctx context.Context, p *Primary, cfg VerifyConfig) (differ **Bitmap, err *error, ended chan struct{}) {
	differ, err, ended = new(*Bitmap), new(error), make(chan struct{})
	go func() {
		defer close(ended)
		*differ, *err = p.VerifyOnline(ctx, cfg)
	}()
	return differ, err, ended
}

// If anything waited for the other side, this test would not end.
func TestTheGuestGoesOnWhileAVerificationReadsTheOtherSide(t *testing.T) {
	for name, with := range readings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s, local, disk := verifyRig(t, nil)
				goOn := make(chan struct{})
				cfg, _ := with(s, func(int) error { <-goOn; return nil })
				differ, err, ended := verifying(t.Context(), p, cfg)
				synctest.Wait()
				write(t, p, 0x22, ChunkSize, 512)
				write(t, p, 0x22, 3*ChunkSize, ChunkSize) // what differed there is written over
				must(t, p.Sync())
				checkpointBoth(t, p, s, 1)
				close(goOn)
				<-ended
				must(t, *err)
				if !(*differ).Any(7*ChunkSize, 1) || (*differ).Bytes() != ChunkSize {
					t.Errorf("%d bytes differ, want the chunk 7", (*differ).Bytes())
				}
				local.data[7*ChunkSize] = disk.data[7*ChunkSize]
				wantBytes(t, "the copies", disk.data, local.data, 0)
			})
		})
	}
}

// A chunk that is written during each reading is judged in the end, and no other is read again for
// it. A write waits as long as the other side needs for that chunk, and not as a whole.
func TestAChunkThatIsAlwaysWrittenIsVerified(t *testing.T) {
	type course struct {
		read    string
		repair  Repair
		takes   time.Duration // a reading
		reading int           // that is the last one
	}
	var courses []course
	for read := range readings {
		for _, repair := range []Repair{RepairNone, RepairSecondary, RepairPrimary} {
			courses = append(courses, course{read, repair, firstHold / 2, freeTries + 1}, course{read, repair, 10 * firstHold, freeTries + 2})
		}
	}
	for _, c := range courses {
		t.Run(fmt.Sprintf("%s, repair %d, %v each", c.read, c.repair, c.takes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s, local, disk := verifyRig(t, nil)
				var writes sync.WaitGroup
				var waited atomic.Int64
				cfg, r := readings[c.read](s, func(count int) error {
					writes.Go(func() {
						begin := time.Now()
						write(t, p, byte(count), 3*ChunkSize+SectorSize, SectorSize)
						waited.Store(max(waited.Load(), int64(time.Since(begin))))
					})
					time.Sleep(c.takes)
					return nil
				})
				cfg.Repair = c.repair
				differ, err, ended := verifying(t.Context(), p, cfg)
				<-ended
				writes.Wait()
				must(t, *err)
				if !(*differ).Any(3*ChunkSize, 1) || !(*differ).Any(7*ChunkSize, 1) || (*differ).Bytes() != 2*ChunkSize {
					t.Errorf("%d bytes differ, want the chunks 3 and 7", (*differ).Bytes())
				}
				if w := time.Duration(waited.Load()); w != c.takes {
					t.Errorf("a write waited for %v", w)
				}
				if r.count != c.reading {
					t.Errorf("%d readings, want %d", r.count, c.reading)
				}
				must(t, p.Sync())
				if c.repair != RepairNone {
					wantBytes(t, "the copies", disk.data, local.data, 0)
				}
			})
		})
	}
}

func TestAWriteDoesNotWaitForAVerificationThatHangs(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(p *Primary, cancel func()) // of what keeps the write away
		after time.Duration
		err   error
	}{
		"no word comes":    {func(*Primary, func()) {}, firstHold, errInjected},
		"Cut":              {func(p *Primary, _ func()) { p.Cut() }, 0, ErrCut},
		"the context ends": {func(_ *Primary, cancel func()) { cancel() }, 0, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s, _, _ := verifyRig(t, nil)
				hangs, goOn := make(chan struct{}), make(chan struct{})
				cfg, _ := readings["by sums"](s, func(count int) error {
					if count <= freeTries {
						write(t, p, byte(count), 3*ChunkSize+SectorSize, SectorSize)
						return nil
					}
					close(hangs)
					<-goOn
					return errInjected
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err, ended := verifying(ctx, p, cfg)
				<-hangs
				begin, done := time.Now(), make(chan struct{})
				go func() {
					defer close(done)
					write(t, p, 0x22, 3*ChunkSize, ChunkSize)
				}()
				synctest.Wait()
				c.end(p, cancel)
				<-done
				if d := time.Since(begin); d != c.after {
					t.Errorf("the write has waited for %v", d)
				}
				close(goOn)
				<-ended
				wantErr(t, "the verification", *err, c.err)
			})
		})
	}
}

// readerFunc reads by a function.
type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// What has been read of the secondary is old then, and must not become the primary's.
func TestAChunkThatIsSynchronisedMeanwhileIsVerifiedAgain(t *testing.T) {
	p, s, local, disk := verifyRig(t, nil)
	differs := NewBitmap(testSize)
	differs.Set(3*ChunkSize, ChunkSize)
	var once sync.Once
	secondary := func(b []byte, off int64) (int, error) {
		n, err := s.Export().ReadAt(b, off)
		once.Do(func() {
			must(t, p.Unsynchronise(differs))
			must(t, p.Synchronise(t.Context(), SyncConfig{}))
		})
		return n, err
	}
	differ, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: readerFunc(secondary), Repair: RepairPrimary})
	must(t, err)
	if !differ.Any(7*ChunkSize, 1) || differ.Bytes() != ChunkSize {
		t.Errorf("%d bytes differ, want the chunk 7", differ.Bytes())
	}
	want(t, "the primary, where the secondary differed first", local, 0x11, 3*ChunkSize, ChunkSize)
	wantBytes(t, "the copies", disk.data, local.data, 0)
}
