package linuxguest

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestAPulseBeginsWithItsLineAndEndsWithItsMachine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		pulse(path, ended)
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
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil || b[0] != '\n' {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if _, err := conn.Write([]byte("said by a machine")); err != nil {
		t.Fatal(err)
	}
	close(ended)
	<-done
	var b [1]byte
	if _, err := conn.Read(b[:]); err == nil {
		conn.Read(b[:]) // what was on its way
	}
	if _, err := conn.Read(b[:]); err == nil {
		t.Error("the line goes on")
	}
}
