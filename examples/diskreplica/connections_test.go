package main

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// between listens at a path and calls serve, which may begin more by all. It returns when it listens, and all ends with
// the test.
func between(t *testing.T, path string, serve func(ln net.Listener, all *sync.WaitGroup)) {
	t.Helper()
	ln, err := socket.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { ln.Close() })
	all.Go(func() { serve(ln, &all) })
}

// passOn takes connections at the path from and passes them on to that at to. The one with the number cut ends when
// that many bytes have come from there. It returns when it listens, and ends with the test.
func passOn(t *testing.T, from, to string, cut int, bytes int64) {
	t.Helper()
	between(t, from, func(ln net.Listener, all *sync.WaitGroup) {
		for n := 0; ; n++ {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", to)
			if err != nil {
				near.Close()
				return
			}
			answers := io.Reader(far)
			if n == cut {
				answers = io.LimitReader(far, bytes)
			}
			pass := func(w net.Conn, r io.Reader) {
				io.Copy(w, r)
				near.Close()
				far.Close()
			}
			all.Go(func() { pass(far, near) })
			all.Go(func() { pass(near, answers) })
		}
	})
}

// Each of the connections to a secondary ends when so many bytes of its answers have come.
func TestWhoLosesTheSecondaryIsToldWhichConnectionEnded(t *testing.T) {
	failed := 0
	for _, c := range []struct {
		control bool
		cut     int // which connection: to the disk, to the sums, to the identity, and to the sums again
		bytes   []int64
	}{
		{true, 0, []int64{0, 10, 40}},
		{false, 0, []int64{0, 17, 100, 240, 300}},
		{false, 1, []int64{0, 17, 100, 300, 700}},
		{false, 2, []int64{0, 17, 100, 300}},
		{false, 3, []int64{0, 17, 100, 300}},
	} {
		if testing.Short() {
			c.bytes = c.bytes[len(c.bytes)-2:]
		}
		for _, n := range c.bytes {
			t.Run(fmt.Sprintf("control %v, connection %d, after %d bytes", c.control, c.cut, n), func(t *testing.T) {
				dir := socket.Dir(t)
				path := func(name string) string { return filepath.Join(dir, name) }
				disk, err := replication.CreateFile(path("b.img"), 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { disk.Close() })
				startSecondary(t, path("b"), disk, replication.SecondaryConfig{})
				data, control := -1, -1
				if c.control {
					control = c.cut
				} else {
					data = c.cut
				}
				passOn(t, path("c"), path("b"), data, n)
				passOn(t, path("c.control"), path("b.control"), control, n)
				args := []string{"primary", "-image", path("a.img"), "-size", "1M", "-secondary", path("c")}
				err = run(t.Context(), args, strings.NewReader("verify\nquit\n"), t.Output(), false)
				if err == nil {
					return // it needed no more of that connection
				}
				failed++
				if !strings.Contains(err.Error(), "secondary at "+path("c")) || !strings.Contains(err.Error(), "export") && !strings.Contains(err.Error(), "control") {
					t.Errorf("it says %q", err)
				}
				t.Log(err)
			})
		}
	}
	if failed < 12 && !testing.Short() {
		t.Errorf("no more than %d have failed", failed)
	}
}
