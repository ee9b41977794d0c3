package linuxguest

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
)

// cables plugs so many cables into a hub and returns their other ends.
func cables(t *testing.T, h *Hub, names ...string) []*filter.Conn {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); group.Wait() })
	var ends []*filter.Conn
	for _, name := range names {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		group.Go(func() { h.Serve(ctx, name, filter.NewConn(here, filter.ConnConfig{}), here) })
		ends = append(ends, filter.NewConn(there, filter.ConnConfig{}))
	}
	for _, name := range names {
		for {
			if _, ok := h.Stats(name); ok {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return ends
}

// frame is one from an address to another; broadcast is 255.
func frame(to, from byte) []byte {
	f := make([]byte, 60)
	f[5], f[11] = to, from
	if to == 255 {
		copy(f, "\xff\xff\xff\xff\xff\xff")
	}
	return f
}

func wantFrame(t *testing.T, why string, c *filter.Conn, from byte) {
	t.Helper()
	p, err := c.ReadPacket()
	if err != nil || p[11] != from {
		t.Fatalf("%s: got %x, %v", why, p, err)
	}
}

func TestAHubLearnsWhereAnAddressIs(t *testing.T) {
	var h Hub
	c := cables(t, &h, "a", "b", "c")
	send := func(end int, f []byte) {
		t.Helper()
		if err := c[end].WritePacket(f); err != nil {
			t.Fatal(err)
		}
	}
	send(0, frame(255, 1))
	wantFrame(t, "a broadcast goes everywhere", c[1], 1)
	wantFrame(t, "a broadcast goes everywhere", c[2], 1)
	send(1, frame(1, 2))
	wantFrame(t, "1 is behind a", c[0], 2)
	send(2, frame(2, 3))
	wantFrame(t, "2 is behind b, and c had nothing of what 2 sent to 1", c[1], 3)

	// A guest that has moved says so by a broadcast.
	send(2, frame(255, 1))
	wantFrame(t, "its announcement", c[0], 1)
	wantFrame(t, "its announcement", c[1], 1)
	if at := h.Behind([6]byte{5: 1}); at != "c" {
		t.Errorf("1 is behind %q", at)
	}
	send(1, frame(1, 2))
	wantFrame(t, "1 is behind c now", c[2], 2)
	send(0, frame(2, 9))
	wantFrame(t, "and a had nothing of it", c[1], 9)
}

func TestAHubForgetsWhatWasBehindACableThatIsPulled(t *testing.T) {
	var h Hub
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	here, there := net.Pipe()
	served := make(chan error)
	go func() { served <- h.Serve(ctx, "a", filter.NewConn(here, filter.ConnConfig{}), here) }()
	if err := filter.NewConn(there, filter.ConnConfig{}).WritePacket(frame(255, 1)); err != nil {
		t.Fatal(err)
	}
	for h.Behind([6]byte{5: 1}) != "a" {
		time.Sleep(time.Millisecond)
	}
	there.Close()
	if err := <-served; err == nil {
		t.Error("no error says that the cable was pulled")
	}
	if at := h.Behind([6]byte{5: 1}); at != "" {
		t.Errorf("still behind %q", at)
	}
	if _, ok := h.Stats("a"); ok {
		t.Error("the port is still there")
	}
	cancel()
	if err := h.Serve(ctx, "b", filter.NewConn(here, filter.ConnConfig{}), here); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
