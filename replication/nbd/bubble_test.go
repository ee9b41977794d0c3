package nbd

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A simulator runs disks in a bubble, whose time goes on only while everybody
// in it is durably blocked: so neither side may hold a mutex while it reads its
// connection.
func TestBothSidesOfAConnectionThatIsSilentLetTheTimeOfABubbleGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const depth = 4
		release := make(chan struct{})
		disk := newRAM(1 << 20)
		disk.hook = func(op string, _ int64) error {
			if op == "read" {
				<-release
			}
			return nil
		}
		srv := NewServer(ServerConfig{})
		_, err := srv.Export(ExportConfig{Disk: disk})
		must(t, err)
		a, b := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if err := srv.ServeConn(context.Background(), b); err != nil {
				t.Error(err)
			}
		})
		c, err := NewClient(context.Background(), a, ClientConfig{MaxRequests: 2 * depth, Timeout: 2 * time.Hour})
		must(t, err)
		defer c.Close()

		var readers sync.WaitGroup
		for i := range depth {
			readers.Go(func() {
				var p [512]byte
				if _, err := c.ReadAt(p[:], int64(i)*512); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Hour) // requests are under way, and one more worker reads
		close(release)
		readers.Wait()
		time.Sleep(time.Hour) // nothing is, and all workers but one wait
		must(t, c.Sync())
	})
}
