package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// The disk of a guest on two hosts, which here are two ends of a connection:
// the secondary serves it, the primary finds what differs by its checksums and
// copies that.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}

	// The secondary's host. A primary of an earlier generation is refused.
	there := &memory{data: make([]byte, 1<<20)}
	secondary, err := replication.NewSecondary(there, replication.SecondaryConfig{Name: "disk0"})
	must(err)
	server := nbd.NewServer(nbd.ServerConfig{})
	export, err := server.Export(nbd.ExportConfig{Name: "disk0", Generation: 7, Disk: secondary.Export()})
	must(err)
	_, err = server.Export(nbd.ExportConfig{Name: "sums0", ReadOnly: true, Disk: replication.NewSums(secondary.Export())})
	must(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	running.Go(func() { server.Serve(ctx, ln) })

	// The primary's host, whose guest has used its disk for a while.
	here := &memory{data: make([]byte, 1<<20)}
	copy(here.data[100_000:], "what the guest wrote")
	events := new(event.Bus)
	event.Subscribe(events, func(e event.DiskSynchronised) {
		fmt.Printf("%s: %d KiB copied, %d KiB were the same\n", e.Disk, e.Copied>>10, e.Same>>10)
	})
	primary, err := replication.NewPrimary(here, replication.PrimaryConfig{Name: "disk0", Events: events, Overwrite: true})
	must(err)
	running.Go(func() { primary.Run(ctx) })
	conn, err := nbd.Dial(ctx, "tcp", ln.Addr().String(), nbd.ClientConfig{Export: nbd.Name("disk0", 7)})
	must(err)
	sums, err := nbd.Dial(ctx, "tcp", ln.Addr().String(), nbd.ClientConfig{Export: "sums0"})
	must(err)
	must(primary.Attach(conn))
	must(primary.Synchronise(ctx, replication.SyncConfig{Sums: sums}))
	must(sums.Close())

	// From here on the session calls it. It is handed the disks as a
	// replication.Group: epoch 0 begins, and each checkpoint is one.
	must(primary.Mark(ctx, 0))
	must(secondary.Start(ctx))
	must(primary.Loaded(ctx, 0))
	must(primary.Start(ctx))
	_, err = primary.WriteAt([]byte("and later than that."), 100_000)
	must(err)
	must(primary.Mark(ctx, 1))
	must(secondary.Checkpoint(ctx, 1))
	must(primary.Loaded(ctx, 1))

	// The primary's host is lost; what it may still send is refused.
	must(export.Close(ctx))
	must(secondary.Stop(ctx, true))
	fmt.Printf("the twin goes on with %q\n", there.data[100_000:100_020])
	must(primary.Stop(ctx, true))
	cancel()
	running.Wait()
	// Output:
	// disk0: 64 KiB copied, 960 KiB were the same
	// the twin goes on with "and later than that."
}
