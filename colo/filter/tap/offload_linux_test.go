package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
)

// A stack is a kernel's network stack behind a TAP interface, in a namespace of its
// own, which lives as long as the test.
type stack struct {
	*tap.Device
	do chan func()
}

// newStack has addresses 10.9.0.host/24 and fd00::host/64.
func newStack(t *testing.T, cfg tap.Config, host int) *stack {
	t.Helper()
	require.Outside(t, require.NetNS)
	s := &stack{do: make(chan func())}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good, as in open
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.Device, err = tap.Open(cfg)
		}
		if err == nil {
			for _, args := range [][]string{
				{"addr", "add", fmt.Sprintf("10.9.0.%d/24", host), "dev", s.Name()},
				{"addr", "add", fmt.Sprintf("fd00::%d/64", host), "dev", s.Name(), "nodad"},
				{"link", "set", s.Name(), "up"},
			} {
				if out, e := exec.Command("ip", args...).CombinedOutput(); e != nil {
					err = fmt.Errorf("ip %v: %w: %s", args, e, out)
					break
				}
			}
		}
		failed <- err
		for f := range s.do {
			f()
		}
	}()
	if err := <-failed; err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(func() { s.Close(); close(s.do) })
	return s
}

// in calls f on the namespace's thread.
func (s *stack) in(f func()) {
	done := make(chan struct{})
	s.do <- func() { defer close(done); f() }
	<-done
}

// pump carries frames from one stack to another, past fn.
func pump(from, to *stack, fn func(frame []byte) bool) error {
	for {
		p, err := from.ReadPacket()
		if err != nil {
			return err
		}
		if fn(p) {
			// The kernel does not look at a checksum that is partial: it has to look at
			// what comes of it.
			if h := packet.VNetOf(p, from.VNetHdrLen()); h != nil && h.Complete(p[len(h):]) {
				h[0] &^= packet.VNetNeedsCsum
			}
			if err := to.WriteVNetPacket(p, from.VNetHdrLen()); err != nil {
				return err
			}
		}
	}
}

// Behind a rewriter whose primary's guest is a thousand million numbers and a
// thousand seconds apart, a server's stack talks to a client's: each drops what has
// a wrong checksum, and what echoes a time that it never sent.
func TestStacksWithOffloadsTalkThroughARewriter(t *testing.T) {
	for _, c := range []struct {
		vnet    int
		offload tap.Offload
	}{{0, 0}, {10, tap.OffloadTCP}, {12, tap.OffloadTCP}, {20, tap.OffloadChecksum}, {24, tap.OffloadTCP}} {
		for _, addr := range []string{"10.9.0.1", "fd00::1"} {
			t.Run(fmt.Sprintf("%d %#x %s", c.vnet, c.offload, addr), func(t *testing.T) {
				cfg := tap.Config{VNetHdrLen: c.vnet, Offload: c.offload}
				guest, client := newStack(t, cfg, 1), newStack(t, cfg, 2)
				r := filter.NewRewriter(filter.RewriterConfig{})
				var mu sync.Mutex
				var big, partial int
				count := func(f []byte) {
					if len(f) > c.vnet+1514 {
						big++
					}
					if h := packet.VNetOf(f, c.vnet); h != nil && h.Flags()&packet.VNetNeedsCsum != 0 {
						partial++
					}
				}
				var pumps sync.WaitGroup
				pumps.Go(func() {
					pump(client, guest, func(f []byte) bool {
						mu.Lock()
						defer mu.Unlock()
						count(f)
						return r.Inbound(f, c.vnet)
					})
				})
				pumps.Go(func() {
					pump(guest, client, func(f []byte) bool {
						mu.Lock()
						defer mu.Unlock()
						count(f)
						r.Outbound(f, c.vnet)
						asThePrimary(f, c.vnet)
						return true
					})
				})
				echo(t, guest, client, netip.AddrPortFrom(netip.MustParseAddr(addr), 80))
				guest.Close()
				client.Close()
				pumps.Wait()
				if s := r.Stats(); s.Rewritten == 0 {
					t.Errorf("%+v", s)
				}
				if whole := c.offload&tap.OffloadTSO4 != 0; (big > 0) != whole {
					t.Errorf("%d frames were to be cut", big)
				}
				if (partial > 0) != (c.offload != 0) {
					t.Errorf("%d checksums were partial", partial)
				}
			})
		}
	}
}

// asThePrimary makes of the SYN|ACK of the secondary's guest that of the primary's.
func asThePrimary(frame []byte, vnet int) {
	var p packet.Packet
	if p.ParseVNet(frame, vnet); !p.IsTCP() || p.TCP().Flags()&packet.SYN == 0 {
		return
	}
	h := p.TCP()
	h.SetSeq(h.Seq() - 1e9)
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		if !ok {
			break
		}
		if kind == packet.OptTimestamps {
			binary.BigEndian.PutUint32(data, binary.BigEndian.Uint32(data)-1e6)
		}
		opts = rest
	}
	if !packet.VNetOf(frame, vnet).PartialChecksum(&p, packet.TCPChecksumAt) {
		h.SetChecksum(p.TCPChecksum())
	}
}

// echo sends a lot to a server that sends it back.
func echo(t *testing.T, guest, client *stack, addr netip.AddrPort) {
	t.Helper()
	var l net.Listener
	var err error
	guest.in(func() { l, err = net.Listen("tcp", addr.String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var served sync.WaitGroup
	served.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := io.Copy(c, c); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	defer served.Wait()
	defer l.Close()
	var c net.Conn
	client.in(func() { c, err = (&net.Dialer{Timeout: 20 * time.Second}).Dial("tcp", addr.String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second)) // so that a test that hangs says where
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	served.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("the client: %v", err)
		}
		c.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(data), err)
	}
}

func TestOffloadsNeedAHeaderAndMayChange(t *testing.T) {
	if d, err := tap.Open(tap.Config{Offload: tap.OffloadChecksum}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v, %v", d, err)
	}
	d := open(t, tap.Config{VNetHdrLen: 12})
	for _, o := range []tap.Offload{tap.OffloadTCP, tap.OffloadChecksum, 0} {
		if err := d.SetOffload(o); err != nil {
			t.Errorf("%#x: %v", o, err)
		}
	}
	var e *tap.Error
	if err := d.SetOffload(1 << 20); !errors.Is(err, unix.EINVAL) || !errors.As(err, &e) || e.Op != "offload" {
		t.Errorf("%v", err)
	}
	d.Close()
	if err := d.SetOffload(0); err == nil {
		t.Error("a device that is closed has offloads")
	}
	d = open(t, tap.Config{})
	if err := d.SetOffload(tap.OffloadChecksum); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}

// What an interface without headers cannot have done for it is done, or is lost.
func TestAnInterfaceWithoutHeadersTakesCompleteFrames(t *testing.T) {
	d := open(t, tap.Config{})
	up(t, d)
	f := question(12)
	f[1] = packet.GSOTCPv4
	if err := d.WriteVNetPacket(f, 12); err != nil || d.Lost() != 1 {
		t.Errorf("%v, %d lost", err, d.Lost())
	}
	f[0], f[1], f[6], f[8] = packet.VNetNeedsCsum, 0, 200, 16
	if err := d.WriteVNetPacket(f, 12); err != nil || d.Lost() != 2 {
		t.Errorf("%v, %d lost", err, d.Lost())
	}
}
