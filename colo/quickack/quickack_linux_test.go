package quickack_test

import (
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/colo/quickack"
)

// prompt reports whether the kernel acknowledges at once what comes next on a connection
// (tcp(7), TCP_QUICKACK).
func prompt(t *testing.T, conn net.Conn) bool {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flag int
	if failed := raw.Control(func(fd uintptr) {
		flag, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK)
	}); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	return flag != 0
}

func TestWhatIsReadIsAcknowledgedAtOnce(t *testing.T) {
	nagle, other := pair(t)
	conn := quickack.Conn(other)
	p := make([]byte, 7)
	for i := range 100 {
		if _, err := nagle.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, p); err != nil {
			t.Fatal(err)
		}
		// A kernel that has seen a few answers waits for the next one, which then
		// carries its acknowledgement.
		if !prompt(t, conn) {
			t.Fatalf("after %d requests and answers the kernel waits for an answer", i)
		}
		if _, err := conn.Write([]byte("answer!")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nagle, p); err != nil {
			t.Fatal(err)
		}
	}
}
