package qmp_test

import (
	"context"
	"fmt"
	"net"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

func Example() {
	var bus event.Bus
	var c qmp.Commands
	qmp.Register(&c, "set-link", func(_ context.Context, a struct {
		Name string `json:"name"`
		Up   bool   `json:"up"`
	}) (qmp.None, error) {
		if a.Name != "net0" {
			return qmp.None{}, &qmp.Error{Class: qmp.DeviceNotFound, Desc: "Device '" + a.Name + "' not found"}
		}
		bus.Publish(event.Stop{})
		return qmp.None{}, nil
	})
	s := qmp.Server{Commands: &c, Bus: &bus}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	near, far := net.Pipe()
	done := make(chan error)
	go func() { done <- s.ServeConn(ctx, far) }()

	client, err := qmp.NewClient(ctx, near)
	if err != nil {
		fmt.Println(err)
		return
	}
	type args map[string]any
	fmt.Println(client.Do(ctx, "set-link", args{"name": "net0", "up": true}, nil))
	fmt.Println(client.Do(ctx, "set-link", args{"name": "net1", "up": true}, nil))
	fmt.Println(client.Do(ctx, "set-link", args{"name": "net0", "up": "yes"}, nil))
	r, _ := client.Wait(ctx, func(event.Record) bool { return true })
	fmt.Println(r.Event.Name())
	client.Close()
	<-done
	// Output:
	// <nil>
	// set-link: Device 'net1' not found
	// set-link: Invalid parameter type for 'up', expected: boolean
	// STOP
}
