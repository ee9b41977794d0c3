package heartbeat_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gocolo/lockstep/failover/heartbeat"
)

// A session is told of every end of its heartbeat that its host did not ask for.
func ExampleRun() {
	a, b := net.Pipe()
	ctx, leave := context.WithCancel(context.Background())
	other := make(chan error)
	go func() { other <- heartbeat.Run(ctx, b, 50*time.Millisecond, time.Minute) }()

	leave() // the other host stops its heartbeat in good order
	err := heartbeat.Run(context.Background(), a, 50*time.Millisecond, time.Minute)
	fmt.Println(errors.Is(err, heartbeat.ErrGoodbye)) // session.Lost(err)
	<-other
	// Output: true
}

// A Monitor is told what was heard when, and has no clock.
func ExampleMonitor() {
	at := time.Unix(0, 0)
	m := heartbeat.Monitor{Timeout: time.Second}
	m.Beat(at)
	fmt.Println(m.Lost(at.Add(999 * time.Millisecond)))
	fmt.Println(m.Lost(at.Add(time.Second)))
	// Output:
	// false
	// true
}
