package nbd_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication/nbd"
)

// BenchmarkFioPrimaryOverALink is BenchmarkFioPrimary with a link between the hosts: the
// kernel's TCP as fast as the processors are, and at ten gigabits and one gigabit a second,
// which the kernel keeps to; each without delay, and with one of 100 µs in each
// direction. One hop, as two hosts in a rack have it between them, is 10gbit/rtt200us.
func BenchmarkFioPrimaryOverALink(b *testing.B) {
	for _, rate := range []string{"unlimited", "10gbit", "1gbit"} {
		for _, delay := range []time.Duration{0, 100 * time.Microsecond} {
			b.Run(fmt.Sprintf("%s/rtt%dus", rate, 2*delay.Microseconds()), func(b *testing.B) {
				in := func(fn func() error) error { return fn() }
				if rate != "unlimited" {
					in = netns.NewLink(b, rate).Do
				}
				fioPrimary(b, func(d nbd.Disk) *nbd.Client {
					srv := nbd.NewServer(nbd.ServerConfig{})
					_, err := srv.Export(nbd.ExportConfig{Disk: d})
					must(b, err)
					var ln net.Listener
					must(b, in(func() (err error) { ln, err = net.Listen("tcp", "127.0.0.1:0"); return err }))
					ctx, cancel := context.WithCancel(context.Background())
					var served sync.WaitGroup
					served.Go(func() { srv.Serve(ctx, ln) })
					b.Cleanup(func() { cancel(); served.Wait() })
					var conn net.Conn
					must(b, in(func() (err error) { conn, err = net.Dial("tcp", ln.Addr().String()); return err }))
					if delay > 0 {
						conn = newFarConn(b, conn, delay)
					}
					c, err := nbd.NewClient(ctx, conn, nbd.ClientConfig{})
					must(b, err)
					return c
				})
			})
		}
	}
}

// newFarConn returns a connection to where conn leads, whose every byte is under way for a
// while longer, in both directions, until the benchmark ends.
func newFarConn(b *testing.B, conn net.Conn, delay time.Duration) net.Conn {
	b.Helper()
	ln, err := net.Listen("unix", socket.Dir(b)+"/s")
	must(b, err)
	defer ln.Close()
	near, err := net.Dial("unix", ln.Addr().String())
	must(b, err)
	far, err := ln.Accept()
	must(b, err)
	var carried sync.WaitGroup
	for _, way := range [][2]net.Conn{{far, conn}, {conn, far}} {
		carried.Go(func() { carry(way[1], way[0], delay) })
	}
	b.Cleanup(func() { near.Close(); far.Close(); conn.Close(); carried.Wait() })
	return near
}

// carry gives what comes from src to dst, later. A chunk waits for no other's time.
func carry(dst, src net.Conn, delay time.Duration) {
	type chunk struct {
		p  []byte
		at time.Time
	}
	way, free := make(chan chunk, 256), make(chan []byte, 256)
	go func() {
		defer close(way)
		for {
			var p []byte
			select {
			case p = <-free:
			default:
				p = make([]byte, 64<<10)
			}
			n, err := src.Read(p)
			if err != nil {
				return
			}
			way <- chunk{p[:n], time.Now().Add(delay)}
		}
	}()
	runtime.LockOSThread() // which sleeps by itself: the runtime's timers may be a millisecond late
	defer runtime.UnlockOSThread()
	for c := range way {
		if left := time.Until(c.at); left > 0 {
			t := unix.NsecToTimespec(int64(left))
			unix.Nanosleep(&t, nil)
		}
		if _, err := dst.Write(c.p); err != nil {
			src.Close()
		}
		select {
		case free <- c.p[:cap(c.p)]:
		default:
		}
	}
	dst.Close()
}
