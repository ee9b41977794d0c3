package filter_test

import (
	"context"
	"fmt"

	"github.com/gocolo/lockstep/colo/filter"
)

// A wire sends the packets that leave to a channel.
type wire struct{ left chan string }

func (n wire) WritePacket(p []byte) error {
	n.left <- string(p)
	return nil
}

// Output waits for the checkpoint that covers it.
func ExampleBuffer() {
	b := filter.NewBuffer(filter.BufferConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	out, done := wire{make(chan string)}, make(chan error)
	go func() { done <- b.Run(ctx, out) }()

	b.Mark(0) // the session begins: from now on packets are held
	b.WritePacket([]byte("said in epoch 1"))
	b.Mark(1)
	b.WritePacket([]byte("said in epoch 2"))
	b.Received(1)
	fmt.Println(<-out.left)
	fmt.Println(b.HeldOutput().Packets, "is held")

	b.Failover() // this side goes on alone
	fmt.Println(<-out.left)
	cancel()
	<-done
	// Output:
	// said in epoch 1
	// 1 is held
	// said in epoch 2
}
