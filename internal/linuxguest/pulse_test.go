package linuxguest

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
)

func TestAPulseBeginsWithItsLineAndEndsWithItsMachine(t *testing.T) {
	path := filepath.Join(socket.Dir(t), "p")
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		pulse(path, 5*time.Millisecond, ended)
	}()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	for range 3 {
		var b [len(pulseFrame)]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil || b != pulseFrame {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if _, err := conn.Write([]byte("said by a machine")); err != nil {
		t.Fatal(err)
	}
	close(ended)
	<-done
	rest, err := io.ReadAll(conn) // to its end, which is a reset if what was said is still unread
	if len(rest)%len(pulseFrame) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d more bytes, %v", len(rest), err)
	}
}
