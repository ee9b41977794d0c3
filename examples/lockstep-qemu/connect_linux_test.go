package main

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/quickack"
)

// A host that has lost its power closes nothing, and says nothing either, as a QEMU does between two checkpoints.
func TestTheKernelProbesThePrimarysHostWithinThePeerTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := watch(quickack.Conn(conn))
	for within, want := range map[time.Duration][3]int{10 * time.Second: {5, 1, 5}, time.Second: {1, 1, 5}, time.Minute: {30, 6, 5}} {
		if err := w.probe(within); err != nil {
			t.Fatal(err)
		}
		var got [3]int
		err := w.raw.Control(func(fd uintptr) {
			for i, name := range []int{syscall.TCP_KEEPIDLE, syscall.TCP_KEEPINTVL, syscall.TCP_KEEPCNT} {
				if got[i], err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, name); err != nil {
					t.Error(err)
				}
			}
		})
		if err != nil || got != want {
			t.Errorf("within %v: idle, interval and count are %v, want %v (%v)", within, got, want, err)
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	defer a.Close()
	if err := watch(a).probe(time.Second); err != nil {
		t.Errorf("of what is no TCP connection: %v", err)
	}
}
