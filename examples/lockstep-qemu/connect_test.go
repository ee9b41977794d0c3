package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestAPeerThatHasGoneIsSeenWithoutReading(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", filepath.Join(socket.Dir(t), "s")} {
		l, uri, err := listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer l.Close()
		w := watch(quickack.Conn(conn))
		if w.gone() {
			t.Errorf("%s: it has not gone", uri)
		}
		if _, err := peer.Write([]byte("last")); err != nil {
			t.Fatal(err)
		}
		peer.Close()
		if _, err := io.ReadFull(w, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if w.gone() {
			t.Errorf("%s: there is something to be read", uri)
		}
		if _, err := io.ReadFull(w, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); !w.gone(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: it has gone", uri)
			}
		}
	}
}

// A QEMU that was started with -daemonize is in the root directory, and tells of a path that was
// meant for this one that there is no such file.
func TestAQEMUIsGivenPathsThatHoldInItsOwnDirectory(t *testing.T) {
	t.Chdir(socket.Dir(t))
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(here, "sk")
	l, uri, err := listen("unix:sk")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if uri != "unix:"+want {
		t.Errorf("a primary is to migrate to %s", uri)
	}
	if network, address := placeOf("unix:sk"); network != "unix" || address != want {
		t.Errorf("%s %s", network, address)
	}
	if nbd, err := nbdAddress("./sk"); err != nil || nbd["path"] != want {
		t.Errorf("%v, %v", nbd, err)
	}
	for addr, want := range map[string]string{"tcp:h:1": "h:1", "h:1": "h:1", "unix:@sk": "@sk", "unix:/a/b": "/a/b"} {
		if _, address := placeOf(addr); address != want {
			t.Errorf("%s: %s", addr, address)
		}
	}
}

// failing is a connection whose reads fail with one error after the other.
type failing struct {
	net.Conn
	errs []error
}

func (c *failing) Read([]byte) (int, error) {
	err := c.errs[0]
	c.errs = c.errs[1:]
	return 0, err
}

// When the kernel has given a connection up its socket reads as if the peer had closed it, which a standby with
// -takeover always takes for the death of the guest.
func TestAPeerThatTheNetworkHasLostHasNotClosedItsConnection(t *testing.T) {
	for name, c := range map[string]struct {
		errs   []error
		closed bool
	}{
		"closed":               {[]error{io.EOF}, true},
		"reset":                {[]error{syscall.ECONNRESET}, true},
		"reset, and then lost": {[]error{syscall.ECONNRESET, syscall.ETIMEDOUT}, true},
		"timed out":            {[]error{syscall.ETIMEDOUT, io.EOF, syscall.EPIPE}, false},
		"no way there":         {[]error{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.EHOSTUNREACH)}, io.EOF}, false},
	} {
		w := watch(&failing{errs: c.errs})
		for range c.errs {
			w.Read(nil)
		}
		if w.gone() != c.closed {
			t.Errorf("%s: closed is %v, want %v", name, w.gone(), c.closed)
		}
	}
}
