package protect

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

// A hangingImage is an image whose reads hang until it is let go.
type hangingImage struct {
	image
	hangs   bool // set while no request is under way
	letGo   chan struct{}
	abandon error
}

func (d *hangingImage) ReadAt(p []byte, off int64) (int, error) {
	if d.hangs {
		<-d.letGo
	}
	return d.image.ReadAt(p, off)
}

func (d *hangingImage) Abandon(err error) { d.abandon = err }

type alwaysOpen struct{ Gate }

func (alwaysOpen) Open() bool { return true }

// A guest's read hangs in the image of a host that follows: the session there ends all the same, and so
// does a takeover, and they say which disk it is.
func TestAnImageThatHangsHoldsUpNoStopOfAHostThatFollows(t *testing.T) {
	for _, failover := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			img := &hangingImage{image: image{b: make([]byte, diskSize)}, letGo: make(chan struct{})}
			d, err := NewDisk(DiskConfig{Name: "root", Image: img, HungAfter: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.adopt(alwaysOpen{}, new(event.Bus), func() {}), d.follow(t.Context())); err != nil {
				t.Fatal(err)
			}
			g := group([]*Disk{d})
			if err := g.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			img.hangs = true
			var guest sync.WaitGroup
			guest.Go(func() { d.ReadAt(make([]byte, sectorSize), 0) })
			synctest.Wait()
			begin := time.Now()
			err = g.Stop(context.WithoutCancel(t.Context()), failover)
			var hung *replication.HungError
			if !errors.As(err, &hung) || hung.Disk != "root" {
				t.Errorf("stop with failover %v: %v, want one that names the disk", failover, err)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("stop with failover %v took %v", failover, took)
			}
			if err := d.failed(); !errors.Is(err, replication.ErrHung) {
				t.Errorf("the disk has not failed: %v", err)
			}
			if img.abandon == nil {
				t.Error("the image was not told")
			}
			close(img.letGo)
			guest.Wait()
			if err := d.secondary.WaitHung(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
