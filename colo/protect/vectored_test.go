package protect

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// gathering is a connection that has vectored writes.
type gathering struct {
	net.Conn
	gathered int64
}

func (g *gathering) WriteBuffers(b *net.Buffers) (int64, error) {
	n, err := b.WriteTo(g.Conn)
	g.gathered += n
	return n, err
}

// The pages of a checkpoint leave in one write with what goes before them, by TCP and by what
// a host has put in its place, and are counted all the same.
func TestTheConnectionOfASessionKeepsItsVectoredWrites(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	other := &gathering{Conn: here}
	for name, conn := range map[string]net.Conn{"TCP": here, "another": other} {
		c := &counted{Conn: conn}
		w, ok := c.link().(qemufile.BuffersWriter)
		if !ok {
			t.Fatalf("%s has no vectored writes", name)
		}
		n, err := w.WriteBuffers(&net.Buffers{[]byte("head"), []byte("page")})
		got := make([]byte, 8)
		if _, e := io.ReadFull(there, got); errors.Join(err, e) != nil || n != 8 || c.n.Load() != 8 || !bytes.Equal(got, []byte("headpage")) {
			t.Errorf("%s: %d bytes, %d counted, %q arrived: %v, %v", name, n, c.n.Load(), got, err, e)
		}
	}
	if other.gathered != 8 {
		t.Errorf("what was put in its place was passed by: %d bytes", other.gathered)
	}
	if _, ok := (&counted{Conn: struct{ net.Conn }{here}}).link().(qemufile.BuffersWriter); ok {
		t.Error("a connection that has none, as one by TLS, has vectored writes")
	}
	here.Close()
}
