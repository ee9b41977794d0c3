package nbd

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/replication"
)

// A takeover waits until nothing is done any more for the former primary, and one request may have
// many GiB of the disk written or read.

// endsEarly has a client make one request, which is done in steps: each is an op of the disk. It
// checks that none comes after the first when the connection of the client ends, on whichever way.
func endsEarly(t *testing.T, op string, disk *ram, cfg ExportConfig, ask func(*Client) error) {
	for how, end := range map[string]func(stop context.CancelFunc, e *Export) error{
		"the server stops":     func(stop context.CancelFunc, _ *Export) error { stop(); return nil },
		"the export is closed": func(_ context.CancelFunc, e *Export) error { return e.Close(context.Background()) },
	} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				steps, release := 0, make(chan struct{})
				disk.hook = func(o string, _ int64) error {
					if o == op { // by one worker, since there is one request
						steps++
						<-release
					}
					return nil
				}
				srv := NewServer(ServerConfig{})
				e, err := srv.Export(cfg)
				must(t, err)
				a, b := net.Pipe()
				ctx, stop := context.WithCancel(context.Background())
				defer stop()
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { srv.ServeConn(ctx, b) })
				c, err := NewClient(context.Background(), a, ClientConfig{})
				must(t, err)
				defer c.Close()

				var asked error
				wg.Go(func() { asked = ask(c) })
				synctest.Wait() // the first step is under way
				if steps != 1 {
					t.Errorf("%d steps before the end", steps)
				}
				var ended atomic.Bool
				wg.Go(func() {
					if err := end(stop, e); err != nil {
						t.Error(err)
					}
					ended.Store(true)
				})
				synctest.Wait() // the connection is closed, and the step under way is waited for
				if how == "the export is closed" && ended.Load() {
					t.Error("the export was closed, and a request is still at the disk")
				}
				close(release)
				wg.Wait()
				if steps != 1 {
					t.Errorf("%d steps were made", steps)
				}
				if asked == nil || errors.As(asked, new(*RequestError)) {
					t.Errorf("the client was told %v", asked)
				}
			})
		})
	}
}

// trimless is a disk that can zero a range only by writing zeroes.
type trimless struct{ *ram }

func (trimless) Trim(_, _ int64) error        { return syscall.EINVAL }
func (trimless) WriteZeroes(_, _ int64) error { return syscall.EINVAL }

func TestZeroesThatHaveToBeWrittenEndWithTheirConnection(t *testing.T) {
	for name, req := range map[string]request{
		"zeroes that must not be a hole": {cmd: cmdWriteZeroes, flags: cmdFlagNoHole},
		"zeroes":                         {cmd: cmdWriteZeroes},
		"a trim":                         {cmd: cmdTrim},
	} {
		t.Run(name, func(t *testing.T) {
			const blocks = 8
			req.n = blocks * uint32(len(zeroes))
			disk := newRAM(blocks * len(zeroes))
			endsEarly(t, "write", disk, ExportConfig{Disk: trimless{disk}}, func(c *Client) error { return c.do(req, nil, nil) })
		})
	}
}

func TestAReadOfChecksumsEndsWithItsConnection(t *testing.T) {
	disk := newRAM(32 * replication.ChunkSize)
	sums := replication.NewSums(disk)
	endsEarly(t, "read", disk, ExportConfig{Disk: sums, ReadOnly: true}, func(c *Client) error {
		_, err := c.ReadAt(make([]byte, sums.Size()), 0)
		return err
	})
}
