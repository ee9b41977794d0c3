package lanes

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// wrapped is a connection in another one, as a tls.Conn is, without what links crypto/tls.
type wrapped struct {
	net.Conn
	within net.Conn
}

func (w wrapped) NetConn() net.Conn { return w.within }

func TestALaneThatIsMeasuredKeepsLittleUnsent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, x := range map[string]struct {
		choose bool
		wrap   func(net.Conn) net.Conn
		want   int
	}{
		"measured":        {true, func(c net.Conn) net.Conn { return c }, unsentBytes},
		"measured, TLS":   {true, func(c net.Conn) net.Conn { return wrapped{nil, c} }, unsentBytes},
		"not measured":    {false, func(c net.Conn) net.Conn { return c }, 0},
		"no socket":       {true, func(net.Conn) net.Conn { a, _ := net.Pipe(); return a }, 0},
		"TLS, no socket":  {true, func(net.Conn) net.Conn { a, _ := net.Pipe(); return wrapped{nil, a} }, 0},
		"a TLS in itself": {true, func(c net.Conn) net.Conn { return wrapped{nil, wrapped{nil, c}} }, unsentBytes},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := NewSender(SenderConfig{Conns: []io.WriteCloser{x.wrap(c)}, Method: multifd.Zlib, Choose: x.choose}); err != nil {
				t.Fatal(err)
			}
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var got int
			if err := raw.Control(func(fd uintptr) {
				got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
			}); err != nil {
				t.Fatal(err)
			}
			if err != nil || got != x.want {
				t.Errorf("%d bytes, want %d (%v)", got, x.want, err)
			}
		})
	}
}
