package nbd

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/replication"
)

// A takeover waits until nothing is done any more for the former primary, and one read of
// checksums may be one of 64 GiB.
func TestAReadOfChecksumsEndsWithItsConnection(t *testing.T) {
	ends := map[string]func(stop context.CancelFunc, e *Export) error{
		"the server stops":     func(stop context.CancelFunc, _ *Export) error { stop(); return nil },
		"the export is closed": func(_ context.CancelFunc, e *Export) error { return e.Close(context.Background()) },
	}
	for how, end := range ends {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const chunks = 32
				disk := newRAM(chunks * replication.ChunkSize)
				reads, release := 0, make(chan struct{})
				disk.hook = func(op string, _ int64) error {
					if op == "read" { // by one worker, since there is one request
						reads++
						<-release
					}
					return nil
				}
				sums := replication.NewSums(disk)
				srv := NewServer(ServerConfig{})
				e, err := srv.Export(ExportConfig{Disk: sums, ReadOnly: true})
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
				wg.Go(func() { _, asked = c.ReadAt(make([]byte, sums.Size()), 0) })
				synctest.Wait() // the first chunk is being read
				if reads != 1 {
					t.Errorf("%d reads before the end", reads)
				}
				wg.Go(func() {
					if err := end(stop, e); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait() // the connection is closed, and the read under way is waited for
				close(release)
				wg.Wait()
				if reads != 1 {
					t.Errorf("%d of %d chunks were read", reads, chunks)
				}
				if asked == nil || errors.As(asked, new(*RequestError)) {
					t.Errorf("the client was told %v", asked)
				}
			})
		})
	}
}
