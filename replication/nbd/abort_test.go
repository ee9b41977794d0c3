package nbd

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// deafLinks are clients of a server that reads nothing once it has been agreed
// what is served, over a pipe that buffers nothing.
var deafLinks = map[string]func(t *testing.T) *Client{
	"in the clear": func(t *testing.T) *Client {
		return deafLink(t, func(c net.Conn) net.Conn { return c }, func(c net.Conn) net.Conn { return c })
	},
	"over TLS": func(t *testing.T) *Client {
		scfg, ccfg := certificates(t)
		return deafLink(t, func(c net.Conn) net.Conn { return tls.Client(c, ccfg) }, func(c net.Conn) net.Conn { return tls.Server(c, scfg) })
	},
}

func deafLink(t *testing.T, ours, theirs func(net.Conn) net.Conn) *Client {
	t.Helper()
	return deafLinkAfter(t, 0, ours, theirs)
}

// deafLinkAfter reads so many bytes first.
func deafLinkAfter(t *testing.T, heard int, ours, theirs func(net.Conn) net.Conn) *Client {
	t.Helper()
	a, b := net.Pipe()
	deaf, ended := make(chan error), make(chan struct{})
	go func() {
		conn := theirs(b)
		n := &negotiation{srv: NewServer(ServerConfig{}), raw: &link{Conn: b, gone: make(chan struct{})}, conn: conn}
		_, err := n.srv.Export(ExportConfig{Disk: newRAM(1 << 20)})
		if err == nil {
			_, err = n.run()
		}
		deaf <- err
		io.ReadFull(conn, make([]byte, heard))
		<-ended
		if err == nil {
			n.leave()
		}
		b.Close()
	}()
	c, err := NewClient(context.Background(), ours(a), ClientConfig{Timeout: time.Hour})
	must(t, err)
	must(t, <-deaf)
	t.Cleanup(func() { c.Close(); close(ended) })
	return c
}

// answeredBefore is a link to an identity that was deaf only after it had
// answered.
type answeredBefore struct {
	*Client
	s *replication.Secondary
}

func (a answeredBefore) ReadAt(p []byte, off int64) (int, error) {
	return replication.NewIdentityDisk(a.s).ReadAt(p, off)
}

func (a answeredBefore) WriteAt(p []byte, off int64) (int, error) {
	return replication.NewIdentityDisk(a.s).WriteAt(p, off)
}

func TestCutDoesNotWaitForASecondaryThatTakesNothing(t *testing.T) {
	for link, dial := range deafLinks {
		for _, busy := range []bool{false, true} {
			name := link
			if busy {
				name += ", with a write on its way"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := context.Background()
					local := newRAM(1 << 20)
					p, err := replication.NewPrimary(local, replication.PrimaryConfig{InSync: true, Overwrite: true})
					must(t, err)
					s, err := replication.NewSecondary(newRAM(1<<20), replication.SecondaryConfig{Overwrite: true})
					must(t, err)
					must(t, p.Attach(replication.WithIdentity(dial(t), answeredBefore{dial(t), s})))
					must(t, p.Start(ctx))
					var wg sync.WaitGroup
					if busy {
						wg.Go(func() { p.WriteAt([]byte{1: 7, 511: 0}, 0) })
						synctest.Wait()
					}
					begin := time.Now()
					p.Cut()
					wg.Wait()
					wantErr(t, "the disk", p.Err(), replication.ErrCut)
					must(t, p.Stop(ctx, true))
					if d := time.Since(begin); d != 0 {
						t.Errorf("it took %v", d)
					}
					if busy && local.data[1] != 7 {
						t.Error("the guest's write is not on the local disk")
					}
				})
			})
		}
	}
}

func TestCloseDoesNotWaitLongForAServerThatTakesNothing(t *testing.T) {
	for name, dial := range deafLinks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := dial(t)
				begin := time.Now()
				must(t, c.Close())
				if d := time.Since(begin); d > leave {
					t.Errorf("it took %v", d)
				}
				wantErr(t, "the client", c.Err(), ErrClosed)
			})
		})
	}
}

// What a TLS session says last of all has its own bound, of seconds.
func TestCloseDoesNotWaitLongForAServerThatTakesNothingButTheFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scfg, ccfg := certificates(t)
		c := deafLinkAfter(t, requestLen, func(c net.Conn) net.Conn { return tls.Client(c, ccfg) }, func(c net.Conn) net.Conn { return tls.Server(c, scfg) })
		begin := time.Now()
		must(t, c.Close())
		if d := time.Since(begin); d > 2*leave {
			t.Errorf("it took %v", d)
		}
		wantErr(t, "the client", c.Err(), ErrClosed)
	})
}

func TestAHandshakeEndsWithItsContextWhateverAServerTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scfg, ccfg := certificates(t)
		a, b := net.Pipe()
		defer b.Close()
		go tls.Server(b, scfg).Handshake() // and nothing more
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := NewClient(ctx, tls.Client(a, ccfg), ClientConfig{Timeout: time.Hour})
		wantErr(t, "the handshake", err, context.DeadlineExceeded)
		if d := time.Since(begin); d != time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestAbortMayComeDuringCloseAndAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := deafLinks["in the clear"](t)
		begin, closed := time.Now(), make(chan struct{})
		go func() { c.Close(); close(closed) }()
		synctest.Wait() // it takes leave of who does not listen
		c.Abort()
		<-closed
		c.Abort()
		if d := time.Since(begin); d != 0 {
			t.Errorf("the leave took %v more", d)
		}
	})
}
