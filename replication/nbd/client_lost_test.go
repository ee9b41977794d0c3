package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stoppedLink is a connection to a client that is stopped when so much of what it sends has
// come: it takes nothing more, either.
type stoppedLink struct{ *lostLink }

func (l stoppedLink) Write(p []byte) (int, error) {
	if l.left == 0 {
		return l.quiet.Write(p)
	}
	return l.Conn.Write(p)
}

// askByName is a client's side of a negotiation by the oldest option, EXPORT_NAME.
func askByName(conn net.Conn) error {
	be := binary.BigEndian
	p := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	p = be.AppendUint64(p, magicOption)
	p = be.AppendUint32(p, optExportName)
	p = append(be.AppendUint32(p, 1), 'd')
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil {
		return err
	}
	if _, err := conn.Write(p); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 10))
	return err
}

// A client is lost at any byte of its negotiation, in the clear and by TLS. The server notices
// an end at once, and silence when the time for negotiation is over, and the place of the
// client in the export, which has room for one, is free for the next.
func TestAClientThatIsLostAtAnyByteOfItsNegotiationGivesItsPlaceBack(t *testing.T) {
	const timeout = 5 * time.Second
	scfg, ccfg := certificates(t)
	asked := ClientConfig{Export: "d", Timeout: 10 * timeout} // it waits longer than the server does
	secure := asked
	secure.TLS = ccfg
	client := func(cfg ClientConfig) func(net.Conn) error {
		return func(conn net.Conn) error {
			c, err := NewClient(context.Background(), conn, cfg)
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	handshake := 13
	if testing.Short() {
		handshake = 211 // each loss costs two handshakes
	}
	for _, kind := range []struct {
		name      string
		negotiate func(net.Conn) error
		cfg       ServerConfig
		steps     int // bytes
	}{
		{"GO", client(asked), ServerConfig{}, 1},
		{"EXPORT_NAME", askByName, ServerConfig{}, 1},
		{"STARTTLS", client(secure), ServerConfig{TLS: scfg}, handshake},
	} {
		for how, end := range map[string]error{"silent": nil, "stopped": nil, "ended": io.EOF, "reset": syscall.ECONNRESET} {
			t.Run(kind.name+", "+how, func(t *testing.T) {
				x := clientLoss{kind.negotiate, kind.cfg, how == "stopped", end}
				x.cfg.Timeout = timeout
				lost := 0
				for whole := false; !whole; lost++ {
					synctest.Test(t, func(t *testing.T) { whole = x.after(t, lost*kind.steps) })
				}
				if lost < 10 {
					t.Errorf("the client was lost %d times", lost-1)
				}
			})
		}
	}
}

// A clientLoss is how a server loses a client that negotiates.
type clientLoss struct {
	negotiate func(net.Conn) error
	cfg       ServerConfig
	stopped   bool
	end       error // nil: the client is silent
}

// after loses the client after so many bytes. It reports whether it had negotiated by then.
func (x *clientLoss) after(t *testing.T, bytes int) (whole bool) {
	ctx := context.Background()
	srv := NewServer(x.cfg)
	e, err := srv.Export(ExportConfig{Name: "d", Disk: newRAM(64 << 10)})
	must(t, err)
	a, b := net.Pipe()
	link := newLostLink(b, bytes, x.end)
	conn := net.Conn(link)
	if x.stopped {
		conn = stoppedLink{link}
	}
	begin, took := time.Now(), time.Duration(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		err = srv.ServeConn(ctx, conn)
		took = time.Since(begin)
	})
	wg.Go(func() {
		whole = x.negotiate(a) == nil
		link.Close()
	})
	wg.Wait()
	if n := e.Clients(); n != 0 {
		t.Errorf("after %d bytes: %d clients, and the only one is lost", bytes, n)
	}
	switch {
	case whole:
	case x.end != nil && took != 0:
		t.Errorf("after %d bytes: %v, %v after the client had ended", bytes, err, took)
	case x.end == nil && took != x.cfg.Timeout:
		t.Errorf("after %d bytes: %v, after %v", bytes, err, took)
	case err == nil:
		t.Errorf("after %d bytes: it is taken for an orderly end", bytes)
	}
	a, b = net.Pipe()
	wg.Go(func() { srv.ServeConn(ctx, b) })
	if err := x.negotiate(a); err != nil {
		t.Errorf("after %d bytes: the next client: %v", bytes, err)
	}
	wg.Wait()
	return whole
}
