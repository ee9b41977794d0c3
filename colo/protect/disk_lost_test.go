package protect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication/nbd"
)

// The other host falls silent while this one waits for an answer about the disk there,
// whichever it is. As soon as it counts as lost the attempt ends: nobody waits as long as a
// request to a disk may take, and so does no write of the guest.
func TestALossEndsTheSynchronisationOfADiskWhateverItWaitsFor(t *testing.T) {
	for channel := range channelsOfDisk {
		waits := 0
		for at, waited := int64(1), true; waited; at++ {
			if waited = losesDisk(t, channel, at); waited {
				waits++
			}
		}
		if waits < 2 {
			t.Errorf("connection %d: it was waited for %d times", channel, waits)
		}
	}
}

// losesDisk attaches a disk over connections of which one falls silent when that much has
// been read from it, and reports whether the attempt had to wait for more.
func losesDisk(t *testing.T, channel int, read int64) (waited bool) {
	synctest.Test(t, func(t *testing.T) {
		name := fmt.Sprintf("connection %d, silent after read %d", channel, read)
		ctx, lose := context.WithCancelCause(t.Context())
		here, there := diskOfAJob(t, 0x11), diskOfAJob(t, 0x22)
		if err := there.follow(ctx); err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		done := make(chan error, 1)
		go func() {
			var way remoteDisk
			for i, ch := range here.channels() {
				var back colotest.Flow
				if i == channel {
					back.Stall = colotest.Point{Op: colotest.Read, N: read}
				}
				near, far := colotest.Pipe(colotest.Flow{}, back)
				serving.Go(func() { there.server.ServeConn(ctx, far) })
				client, err := nbd.NewClient(ctx, near, nbd.ClientConfig{Export: ch})
				if err != nil {
					way.close()
					near.Close()
					done <- err
					return
				}
				way[i] = client
			}
			done <- here.attach(ctx, way)
		}()
		synctest.Wait()
		var err error
		select {
		case err = <-done:
		default:
			waited = true
			begin := time.Now()
			lose(colo.ErrLost)
			if err = <-done; err == nil {
				t.Errorf("%s: it is attached", name)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: it ends %v after the loss", name, took)
			}
		}
		if !waited && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		lose(errors.New("the test is over"))
		here.release()
		serving.Wait()
		here.fence()
	})
	return waited
}

// diskOfAJob returns a disk that has been given to a job, and has this content.
func diskOfAJob(t *testing.T, content byte) *Disk {
	t.Helper()
	d, err := NewDisk(DiskConfig{Name: "root", Image: &image{b: bytes.Repeat([]byte{content}, diskSize)}})
	if err == nil {
		err = d.adopt(opened{}, new(event.Bus), func() {})
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}
