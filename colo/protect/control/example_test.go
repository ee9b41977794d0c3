package control_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// A host takes -qmp from its command line and serves a monitor there for as long as its
// job runs. A client asks how the guest is.
func Example() {
	dir, err := os.MkdirTemp("", "monitor")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	address := "unix:" + filepath.Join(dir, "qmp")
	flags := flag.NewFlagSet("host", flag.ExitOnError)
	handles := control.Flags(flags)
	flags.Parse([]string{"-qmp", address})

	guest, err := colotest.NewVM(colotest.VMConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer guest.Close()
	bus := new(event.Bus)
	job, err := protect.New(protect.Config{
		Name: "db1", Host: "b", Guest: guest, Events: bus,
		Peer: protect.Peer{Listen: "localhost:0", Dial: "other.example:7001", PortConfig: protect.PortConfig{Insecure: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, quit := context.WithCancel(context.Background())
	defer quit()
	ended := make(chan error, 1)
	go func() {
		ended <- handles.Run(ctx, job, control.Config{Events: bus, Guest: guest, Quit: quit})
	}()
	if _, err := job.Wait(ctx, protect.Waiting); err != nil {
		log.Fatal(err)
	}

	client, err := qmp.Dial(ctx, address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var status struct{ Status string }
	if err := client.Do(ctx, "query-status", nil, &status); err != nil {
		log.Fatal(err)
	}
	var protection struct{ Guest, State string }
	if err := client.Do(ctx, "query-protection", nil, &protection); err != nil {
		log.Fatal(err)
	}
	fmt.Println(protection.Guest, "is", protection.State, "and its machine is", status.Status)
	quit()
	fmt.Println("the host has ended:", errors.Is(<-ended, context.Canceled))

	// Output:
	// db1 is waiting and its machine is inmigrate
	// the host has ended: true
}
