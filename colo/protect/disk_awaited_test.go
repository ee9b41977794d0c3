package protect

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// A tiredImage is one of which the next reads take their time, or hang until it is let go.
type tiredImage struct {
	image
	next  atomic.Int64 // so many reads
	each  time.Duration
	letGo chan struct{}
}

func (d *tiredImage) ReadAt(p []byte, off int64) (int, error) {
	if d.next.Load() > 0 && d.next.Add(-1) >= 0 {
		slow := time.NewTimer(d.each)
		defer slow.Stop()
		select {
		case <-slow.C:
		case <-d.letGo:
		}
	}
	return d.image.ReadAt(p, off)
}

// withDisk gives a host a disk that its guest does not use.
func (w *world) withDisk(img replication.Disk, hungAfter time.Duration) func(*Config) {
	return func(c *Config) {
		d, err := NewDisk(DiskConfig{Name: "spare", Image: img, HungAfter: hungAfter})
		if err != nil {
			w.t.Fatal(err)
		}
		c.Disks = []*Disk{d}
	}
}

// A primary that waits for its own disk without an end beats, and never says that the disks are alike.
func TestAPrimaryThatAsksForNothingOfTheDisksIsGivenUp(t *testing.T) {
	for _, c := range []struct {
		name      string
		reads     int64
		each      time.Duration
		hungAfter time.Duration // of the secondary
		given     bool
	}{
		{"that hangs", 1 << 20, 24 * time.Hour, 0, true},
		{"that hangs, and nothing is given up", 1 << 20, 24 * time.Hour, -1, false},
		{"that is slow", 1, 3 * time.Minute, 0, false},
	} {
		bubble(t, c.name, func(t *testing.T, w *world) {
			w.guest.Interval = time.Second
			here := &tiredImage{image: image{b: make([]byte, diskSize)}, each: c.each, letGo: make(chan struct{})}
			a := w.boot("a", true, w.withDisk(here, -1))
			a.is(Alone)
			here.next.Store(c.reads)
			b := w.boot("b", false, w.withDisk(&image{b: make([]byte, diskSize)}, c.hungAfter))
			b.is(Following)
			given := false
			select {
			case <-b.passes(Waiting):
				given = true
			case <-time.After(4 * time.Minute):
			}
			err := b.job.Query().LastError
			said := err != nil && strings.Contains(err.Error(), "has asked for nothing of the disks here for 3m10s")
			if given != c.given || said != c.given || here.next.Load() == c.reads {
				t.Errorf("given up %v: %v; %d reads are left", given, err, here.next.Load())
			}
			close(here.letGo)
			a.is(Protected)
			b.halt()
			a.halt()
		})
	}
}
