package filter

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// The Run of an Inlet leaves nothing behind that could stop the next one: when it has returned, its context's end has
// been noted.
func TestARunOfAnInletReturnsWhenItsEndIsNoted(t *testing.T) {
	in := NewInlet()
	ctx, cancel := context.WithCancel(t.Context())
	here, there := net.Pipe()
	defer there.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- in.Run(ctx, NewConn(here, ConnConfig{Marks: true, OnMark: in.Mark}), func(Frame) error { return nil })
	}()
	there.Write([]byte{0}) // it reads, and so it has begun
	in.mu.Lock()           // what notes the end has to wait
	cancel()
	here.Close()
	select {
	case err := <-ended:
		in.mu.Unlock()
		t.Fatalf("%v, while the end of its context is being noted", err)
	case <-time.After(50 * time.Millisecond):
	}
	in.mu.Unlock()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
