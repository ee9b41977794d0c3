package nbd

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// lostLink is a connection over which only so many bytes come. Then it ends with an error,
// or, if that is nil, is silent, as one is whose other host has no power.
type lostLink struct {
	net.Conn
	left  int
	err   error
	quiet net.Conn // over which nothing comes
}

func newLostLink(c net.Conn, left int, err error) *lostLink {
	quiet, _ := net.Pipe()
	return &lostLink{Conn: c, left: left, err: err, quiet: quiet}
}

func (l *lostLink) Read(p []byte) (int, error) {
	if l.left == 0 {
		if l.err != nil {
			return 0, l.err
		}
		return l.quiet.Read(p)
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

func (l *lostLink) SetDeadline(t time.Time) error {
	l.quiet.SetDeadline(t)
	return l.Conn.SetDeadline(t)
}

func (l *lostLink) SetReadDeadline(t time.Time) error {
	l.quiet.SetReadDeadline(t)
	return l.Conn.SetReadDeadline(t)
}

func (l *lostLink) Close() error {
	l.quiet.Close()
	return l.Conn.Close()
}

// A link is lost at any byte that a server sends: in the negotiation and in the answer to
// each request. An end is noticed at once and silence after the timeout, neither is taken
// for an answer, and what is asked later gets the error without waiting.
func TestALinkThatIsLostAtAnyByteIsNoticedInTime(t *testing.T) {
	const timeout = 5 * time.Second
	step := 3 // of an odd number of bytes, so that each field is met
	if testing.Short() {
		step = 7
	}
	for name, end := range map[string]error{"silence": nil, "end": io.EOF, "reset": syscall.ECONNRESET} {
		t.Run(name, func(t *testing.T) {
			handshakes, requests := 0, 0
			for at, whole := 0, false; !whole; at += step {
				synctest.Test(t, func(t *testing.T) {
					srv := NewServer(ServerConfig{})
					disk := newRAM(64 << 10)
					_, err := srv.Export(ExportConfig{Disk: disk})
					must(t, err)
					a, b := net.Pipe()
					var wg sync.WaitGroup
					defer wg.Wait()
					wg.Go(func() { srv.ServeConn(context.Background(), b) })
					link := newLostLink(a, at, end)
					defer link.Close()

					begin := time.Now()
					c, err := NewClient(t.Context(), link, ClientConfig{Timeout: timeout})
					if err != nil {
						handshakes++
					} else {
						defer c.Close()
						var p [512]byte
						for what, ask := range []func() error{
							func() error { _, err := c.ReadAt(p[:], 0); return err },
							func() error { _, err := c.WriteAt(p[:], 0); return err },
							func() error { return c.WriteFUA(p[:], 512) },
							func() error { return c.WriteZeroes(0, 4096) },
							func() error { return c.Trim(0, 4096) },
							func() error { return c.Extents(0, 64<<10, func(int64, uint32) bool { return true }) },
							c.Sync,
						} {
							if err = ask(); err != nil {
								requests |= 1 << what
								break
							}
						}
					}
					if whole = err == nil; whole {
						return
					}
					took := time.Since(begin)
					switch {
					case end != nil && took != 0:
						t.Errorf("after %d bytes: %v, %v after the link had ended", at, err, took)
					case end == nil && took != timeout:
						t.Errorf("after %d bytes: %v, after %v", at, err, took)
					case end == nil:
						wantErr(t, fmt.Sprintf("after %d bytes", at), err, ErrTimeout)
					case end == io.EOF:
						wantErr(t, fmt.Sprintf("after %d bytes", at), err, errEnded) // which says so in words
					}
					if c == nil {
						return
					}
					if c.Err() == nil {
						t.Errorf("after %d bytes: the connection is not lost", at)
					}
					if err := c.Sync(); err == nil || time.Since(begin) != took {
						t.Errorf("after %d bytes, and the error: %v, after %v", at, err, time.Since(begin)-took)
					}
				})
			}
			if handshakes == 0 || requests != 1<<7-1 {
				t.Errorf("the link was lost in %d handshakes, and in the requests %b", handshakes, requests)
			}
		})
	}
}
