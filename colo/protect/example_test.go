package protect_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

// A guest is protected by two hosts, here of one process. Host a leaves, and the
// guest goes on at host b.
func Example() {
	dir, err := os.MkdirTemp("", "arbiter")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// The port of a host serves all of its guests.
	insecure := protect.PortConfig{Insecure: true}
	a, err := protect.Listen("localhost:0", insecure)
	if err != nil {
		log.Fatal(err)
	}
	b, err := protect.Listen("localhost:0", insecure)
	if err != nil {
		log.Fatal(err)
	}

	// A host brings its guest, which can be paused and resumed and names its
	// devices and memory. These guests are written in Go.
	host := func(name string, port, other *protect.Port) (*protect.Job, *colotest.VM) {
		guest, err := colotest.NewVM(colotest.VMConfig{Touch: 16})
		if err != nil {
			log.Fatal(err)
		}
		arbiter, err := sharedfile.New(dir)
		if err != nil {
			log.Fatal(err)
		}
		job, err := protect.New(protect.Config{
			Name: "db1", Host: name, Guest: guest, Start: name == "a",
			Peer:    protect.Peer{Port: port, Dial: other.Addr().String(), PortConfig: insecure},
			Arbiter: arbiter, Lost: 5 * time.Second, PeerTimeout: 20 * time.Second,
		})
		if err != nil {
			log.Fatal(err)
		}
		return job, guest
	}
	jobA, guestA := host("a", a, b)
	jobB, guestB := host("b", b, a)

	// Whoever calls Run owns the goroutine.
	ctx, stop := context.WithCancel(context.Background())
	leave, stopA := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { a.Serve(ctx) })
	running.Go(func() { b.Serve(ctx) })
	running.Go(func() { guestA.Run(ctx) })
	running.Go(func() { guestB.Run(ctx) })
	running.Go(func() { jobA.Run(leave) })
	running.Go(func() { jobB.Run(ctx) })

	jobA.Wait(ctx, protect.Protected)
	jobB.Wait(ctx, protect.Following)
	fmt.Println("a is", jobA.State(), "and b is", jobB.State())

	stopA()
	jobA.Wait(ctx, protect.Concluded)
	jobB.Wait(ctx, protect.Alone)
	fmt.Println("a is", jobA.State(), "and b is", jobB.State())
	fmt.Println("the guest runs at b:", !guestB.Paused())

	stop()
	running.Wait()
	guestA.Close()
	guestB.Close()
	// Output:
	// a is protected and b is following
	// a is concluded and b is alone
	// the guest runs at b: true
}
