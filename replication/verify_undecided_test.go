package replication

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A write waits no longer than MaxHold, however slow the other side is; what could not be compared is
// told apart from what differs, and is not repaired.
func TestAChunkThatIsAlwaysWrittenBesideASlowSecondaryIsUndecided(t *testing.T) {
	type course struct {
		read          string
		repair        Repair
		takes         time.Duration // a reading
		maxHold, most time.Duration // for which a write may wait, and does
	}
	var courses []course
	for read := range readings {
		for _, repair := range []Repair{RepairNone, RepairSecondary, RepairPrimary} {
			courses = append(courses,
				course{read, repair, 20 * time.Second, 0, defaultMaxHold},
				course{read, repair, 20 * time.Second, 5 * time.Second, 5 * time.Second},
				course{read, repair, firstHold, firstHold / 2, firstHold / 2},
				course{read, repair, time.Millisecond, -1, 0})
		}
	}
	if testing.Short() {
		courses = []course{{"by sums", RepairSecondary, 20 * time.Second, 0, defaultMaxHold}}
	}
	for _, c := range courses {
		t.Run(fmt.Sprintf("%s, repair %d, %v each, at most %v", c.read, c.repair, c.takes, c.maxHold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus, heard := heard[event.DiskVerified]()
				p, s, local, disk := verifyRig(t, bus)
				theirs, ours := disk.data[3*ChunkSize+5], local.data[3*ChunkSize+5]
				var writes sync.WaitGroup
				var waited atomic.Int64
				cfg, _ := readings[c.read](s, func(count int) error {
					writes.Go(func() {
						begin := time.Now()
						write(t, p, byte(count), 3*ChunkSize+SectorSize, SectorSize)
						waited.Store(max(waited.Load(), int64(time.Since(begin))))
					})
					time.Sleep(c.takes)
					return nil
				})
				cfg.Repair, cfg.MaxHold = c.repair, c.maxHold
				differ, err := p.VerifyOnline(t.Context(), cfg)
				writes.Wait()
				var undecided *UndecidedError
				if !errors.As(err, &undecided) || !undecided.Chunks.Any(3*ChunkSize, 1) || undecided.Chunks.Bytes() != ChunkSize {
					t.Fatalf("%v, want the chunk 3 undecided", err)
				}
				if !differ.Any(7*ChunkSize, 1) || differ.Bytes() != ChunkSize {
					t.Errorf("%d bytes differ, want the chunk 7", differ.Bytes())
				}
				if w := time.Duration(waited.Load()); w != c.most {
					t.Errorf("a write waited for %v, want %v", w, c.most)
				}
				repaired := int64(ChunkSize)
				if c.repair == RepairNone {
					repaired = 0
				}
				e := (*heard)[0]
				if e != (event.DiskVerified{
					Disk: "d", Compared: testSize - ChunkSize, Different: ChunkSize, Repaired: repaired, Undecided: ChunkSize, ElapsedNS: e.ElapsedNS,
				}) {
					t.Errorf("heard %+v", e)
				}
				must(t, p.Sync())
				if disk.data[3*ChunkSize+5] != theirs || local.data[3*ChunkSize+5] != ours {
					t.Error("what is undecided was changed")
				}
			})
		})
	}
}
