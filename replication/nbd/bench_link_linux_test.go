package nbd_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/replication/nbd"
)

// BenchmarkFioPrimaryOverALink is BenchmarkFioPrimary with a link between the hosts, of a
// gigabit a second and of ten, which the kernel keeps to: as long as that is what the bare
// remote disk waits for, it does not matter that both hosts share the processors.
func BenchmarkFioPrimaryOverALink(b *testing.B) {
	for _, rate := range []string{"1gbit", "10gbit"} {
		b.Run(rate, func(b *testing.B) {
			link := netns.NewLink(b, rate)
			fioPrimary(b, func(d nbd.Disk) *nbd.Client {
				srv := nbd.NewServer(nbd.ServerConfig{})
				_, err := srv.Export(nbd.ExportConfig{Disk: d})
				must(b, err)
				var ln net.Listener
				must(b, link.Do(func() (err error) { ln, err = net.Listen("tcp", "127.0.0.1:0"); return err }))
				ctx, cancel := context.WithCancel(context.Background())
				var served sync.WaitGroup
				served.Go(func() { srv.Serve(ctx, ln) })
				b.Cleanup(func() { cancel(); served.Wait() })
				var conn net.Conn
				must(b, link.Do(func() (err error) { conn, err = net.Dial("tcp", ln.Addr().String()); return err }))
				c, err := nbd.NewClient(ctx, conn, nbd.ClientConfig{})
				must(b, err)
				return c
			})
		})
	}
}
