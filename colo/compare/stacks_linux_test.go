package compare_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
)

// These tests have the kernel's TCP in the place of the guests: two namespaces
// with one address, in each of them the same deterministic server, and between
// them and a client this module's mirror, comparison and rewriter.
//
// What they can show: that streams of bytes from two stacks that are not in step
// in anything but their input (other initial sequence numbers, other segments,
// other acknowledgments, other timing) are found equal; that nothing leaves
// which the secondary's stack would not stand for; and that it can therefore
// take over from any moment on, without the client noticing.
//
// What they cannot show is a checkpoint: a kernel's TCP cannot be made a copy of
// another's. So a divergence could not be mended, and releasing the primary's
// output would only hide it and break the promise that the takeover rests on.
// The tests take any divergence for a failure. The clocks of the two stacks are
// one, so their TCP timestamps agree, which those of two machines do by way of
// their checkpoints.

const port = 7000

// pattern returns an endless stream that a seed determines.
func pattern(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// serve is the server's side of a connection. What it says is a function of what
// it is told: "down N SEED" is answered with N bytes, "up N" and N bytes with
// their hash. It ends at "quit".
func serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 256<<10)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		var n int64
		var seed uint64
		if k, _ := fmt.Sscanf(line, "down %d %d", &n, &seed); k == 2 {
			_, err = io.CopyN(c, pattern(seed), n)
		} else if k, _ := fmt.Sscanf(line, "up %d", &n); k == 1 {
			h := sha256.New()
			if _, err = io.CopyN(h, r, n); err == nil {
				_, err = c.Write(h.Sum(nil))
			}
		}
		if err != nil || line == "quit\n" {
			return
		}
	}
}

// startServers runs the server on both guests, and an echo of datagrams.
func startServers(t *testing.T, w *world) {
	t.Helper()
	listenOnBoth(t, w, net.ListenConfig{}, serve)
	for _, h := range []*netns.Stack{w.primary, w.secondary} {
		var u net.PacketConn
		h.In(t, func() (err error) {
			u, err = net.ListenPacket("udp", ":"+strconv.Itoa(port))
			return err
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			b := make([]byte, 65536)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		})
		t.Cleanup(func() { u.Close(); wg.Wait() })
	}
}

// listenOnBoth serves connections on both guests, each on a goroutine of its own.
func listenOnBoth(t *testing.T, w *world, cfg net.ListenConfig, serve func(c net.Conn)) {
	t.Helper()
	for _, h := range []*netns.Stack{w.primary, w.secondary} {
		var l net.Listener
		h.In(t, func() (err error) {
			l, err = cfg.Listen(t.Context(), "tcp", ":"+strconv.Itoa(port))
			return err
		})
		conns := &closer{}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				conns.add(c)
				wg.Go(func() { serve(c) })
			}
		})
		t.Cleanup(func() { l.Close(); conns.Close(); wg.Wait() })
	}
}

// A closer closes connections, also those that come later.
type closer struct {
	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func (k *closer) add(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		c.Close()
	}
	k.conns = append(k.conns, c)
}

func (k *closer) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for _, c := range k.conns {
		c.Close()
	}
}

// patience bounds what ought to go on.
const patience = 100 * time.Second

func (w *world) dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	return w.dialBy(t, net.Dialer{}, network, addr)
}

// dialBy is dial with other settings of the socket.
func (w *world) dialBy(t *testing.T, d net.Dialer, network, addr string) net.Conn {
	t.Helper()
	d.Timeout = 20 * time.Second
	var c net.Conn
	w.client.In(t, func() (err error) {
		c, err = d.Dial(network, addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func at(addr string) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }

// size is how much a transfer moves.
func size() int64 {
	if require.Wanted(require.NetNS) && !testing.Short() {
		return 200 << 20
	}
	return 4 << 20
}

// download fetches n bytes; half is called when half of them are here.
func download(t *testing.T, c net.Conn, n int64, seed uint64, half func()) {
	t.Helper()
	begin := time.Now()
	c.SetDeadline(begin.Add(patience))
	fmt.Fprintf(c, "down %d %d\n", n, seed)
	got, want := sha256.New(), sha256.New()
	_, err := io.CopyN(got, c, n/2)
	if err == nil {
		half()
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.CopyN(got, c, n-n/2)
	}
	if err != nil {
		t.Fatalf("download: %v", err)
	}
	io.CopyN(want, pattern(seed), n)
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("what was downloaded is not what was sent")
	}
	if n > 1000 {
		t.Logf("downloaded %d MB in %v", n>>20, time.Since(begin).Round(time.Millisecond))
	}
}

func upload(t *testing.T, c net.Conn, n int64, seed uint64, half func()) {
	t.Helper()
	begin := time.Now()
	c.SetDeadline(begin.Add(patience))
	fmt.Fprintf(c, "up %d\n", n)
	want := sha256.New()
	src := io.TeeReader(pattern(seed), want)
	_, err := io.CopyN(c, src, n/2)
	if err == nil {
		half()
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.CopyN(c, src, n-n/2)
	}
	if err != nil {
		t.Fatalf("upload: %v", err)
	}
	var got [sha256.Size]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		t.Fatalf("upload: %v", err)
	}
	if !bytes.Equal(got[:], want.Sum(nil)) {
		t.Error("what arrived is not what was uploaded")
	}
	t.Logf("uploaded %d MB in %v", n>>20, time.Since(begin).Round(time.Millisecond))
}

func TestOneConnectionCarriesMuchBothWaysOverABadLink(t *testing.T) {
	for name, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			startServers(t, w)
			c := w.dial(t, "tcp", at(addr))
			download(t, c, size(), 1, func() {})
			upload(t, c, size(), 2, func() {})
			w.check(t)
			if w.rewritten().Rewritten == 0 {
				t.Error("the two stacks had one initial sequence number: nothing was tested")
			}
			if s, _ := w.cmp.Stats(); s.Matched == 0 {
				t.Error("nothing was compared")
			}
		})
	}
}

func TestConnectionGoesOnWithoutThePrimary(t *testing.T) {
	for name, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
		for way, transfer := range map[string]func(*testing.T, net.Conn, int64, uint64, func()){"download": download, "upload": upload} {
			t.Run(name+"/"+way, func(t *testing.T) {
				w := newWorld(t)
				startServers(t, w)
				c := w.dial(t, "tcp", at(addr))
				transfer(t, c, size(), 3, func() { w.cutOff(t) })
				// And it is not only what was on its way.
				download(t, c, 100000, 4, func() {})
				upload(t, c, 100000, 5, func() {})
				// A new connection is the survivor's own.
				download(t, w.dial(t, "tcp", at(addr)), 100000, 6, func() {})
				w.check(t)
				if w.rewritten().Rewritten == 0 {
					t.Error("nothing was rewritten")
				}
			})
		}
	}
}

func TestManyShortConnections(t *testing.T) {
	w := newWorld(t)
	startServers(t, w)
	for i := range 100 {
		addr := netns.Guest4
		if i%2 == 1 {
			addr = netns.Guest6
		}
		c := w.dial(t, "tcp", at(addr))
		fmt.Fprintf(c, "down %d %d\n", i*97, i)
		c.(*net.TCPConn).CloseWrite()
		var want bytes.Buffer
		io.CopyN(&want, pattern(uint64(i)), int64(i*97))
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("connection %d: %d bytes, %v", i, len(got), err)
		}
		c.Close()
	}
	w.check(t)
}

func TestConnectionsThatTheGuestsOpen(t *testing.T) {
	w := newWorld(t)
	var l net.Listener
	w.client.In(t, func() (err error) {
		l, err = net.Listen("tcp", ":"+strconv.Itoa(port))
		return err
	})
	defer l.Close()
	for i, addr := range []string{netns.Client4, netns.Client6, netns.Client4} {
		var servers sync.WaitGroup
		conns := &closer{}
		for _, h := range []*netns.Stack{w.primary, w.secondary} {
			servers.Go(func() {
				// A guest's random numbers are its twin's, and so is the port.
				d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{Port: 6000 + i}}
				var c net.Conn
				if err := h.Do(func() (err error) {
					c, err = d.Dial("tcp", at(addr))
					return err
				}); err != nil {
					t.Error(err)
					return
				}
				conns.add(c)
				serve(c)
			})
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		half := func() {}
		if i == 2 {
			half = func() { w.cutOff(t) }
		}
		download(t, c, 1<<20, 7, half)
		upload(t, c, 1<<20, 8, func() {})
		c.Close()
		conns.Close()
		servers.Wait()
	}
	w.check(t)
	if w.rewritten().Rewritten == 0 {
		t.Error("nothing was rewritten")
	}
}

func TestDatagramsAndPings(t *testing.T) {
	w := newWorld(t)
	startServers(t, w)
	for _, fam := range []struct {
		addr, ping string
		request    byte
	}{{netns.Guest4, "ip4:icmp", 8}, {netns.Guest6, "ip6:ipv6-icmp", 128}} {
		u := w.dial(t, "udp", at(fam.addr))
		raw := w.dial(t, fam.ping, fam.addr)
		for i := range 50 {
			exchange(t, u, []byte(fmt.Sprintf("datagram %d", i)), func(got []byte) []byte { return got })
			echo := binary.BigEndian.AppendUint16([]byte{fam.request, 0, 0, 0, 0x12, 0x34}, uint16(i))
			if fam.request == 8 { // the kernel does it for ICMPv6
				binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
			}
			exchange(t, raw, echo, func(got []byte) []byte {
				if len(got) > 20 && got[0] == 0x45 {
					got = got[20:] // IPv4's header comes with it
				}
				if len(got) < 8 || got[0] != 0 && got[0] != 129 {
					return nil
				}
				answer := append([]byte(nil), got...)
				answer[0] = fam.request
				copy(answer[2:4], echo[2:4])
				return answer
			})
		}
	}
	w.check(t)
	if s, _ := w.cmp.Stats(); s.Matched < 200 || s.Passed > 0 {
		t.Errorf("%+v", s)
	}
}

// exchange sends msg until it is answered: the link loses some.
func exchange(t *testing.T, c net.Conn, msg []byte, answer func(got []byte) []byte) {
	t.Helper()
	b := make([]byte, 1<<16)
	for range 20 {
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := c.Read(b)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(answer(b[:n]), msg) {
				return
			}
		}
	}
	t.Fatalf("no answer to %q", msg)
}
