package migrate_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"sync"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A running guest goes to another host, here of the same process, by precopy.
func Example() {
	ctx := context.Background()
	here, err := colotest.NewVM(colotest.VMConfig{Touch: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer here.Close()
	there, err := colotest.NewVM(colotest.VMConfig{Touch: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer there.Close()

	// The source registers the guest's devices and its memory.
	var source vmstate.Registry
	memory := ram.NewLazySaver(here.Blocks(), here, ram.SaverConfig{})
	if err := here.Register(&source); err != nil {
		log.Fatal(err)
	}
	if err := memory.Register(&source); err != nil {
		log.Fatal(err)
	}

	// So does the destination.
	var target vmstate.Registry
	arriving, err := ram.NewLazy(there.Blocks())
	if err != nil {
		log.Fatal(err)
	}
	defer arriving.Close()
	if err := there.Register(&target); err != nil {
		log.Fatal(err)
	}
	if err := arriving.Register(&target); err != nil {
		log.Fatal(err)
	}

	// The guest runs here until it is handed over.
	running, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { here.Run(running) })
	if err := here.Resume(ctx); err != nil {
		log.Fatal(err)
	}

	a, b := net.Pipe()
	group.Go(func() {
		err := migrate.NewSource(migrate.SourceConfig{VM: here, State: &source, Memory: memory, Blocks: here.Blocks()}).Run(ctx, a)
		if err != nil {
			log.Fatal(err)
		}
	})
	if err := migrate.NewDestination(migrate.DestinationConfig{VM: there, State: &target, Memory: arriving, Blocks: there.Blocks()}).Run(ctx, b); err != nil {
		log.Fatal(err)
	}
	end()
	group.Wait()
	fmt.Println("it runs at the source:", !here.Paused())
	fmt.Println("it runs at the destination:", !there.Paused())
	fmt.Println("its memory is the same:", bytes.Equal(here.Memory(), there.Memory()))

	// Output:
	// it runs at the source: false
	// it runs at the destination: true
	// its memory is the same: true
}
