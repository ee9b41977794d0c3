package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/proxy"
)

type stillVM struct{}

func (stillVM) Pause(context.Context) error  { return nil }
func (stillVM) Resume(context.Context) error { return nil }

// quietWire is a network that brings nothing and keeps what leaves.
type quietWire struct {
	closed chan struct{}
	mu     sync.Mutex
	out    [][]byte
}

func (w *quietWire) ReadPacket() ([]byte, error) {
	<-w.closed
	return nil, io.EOF
}

func (w *quietWire) WritePacket(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, bytes.Clone(p))
	return nil
}

func (w *quietWire) left() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.out)
}

// wireProtected returns the network of a guest whose secondary has its state and says
// nothing.
func wireProtected(t *testing.T) (*proxy.Primary, *quietWire) {
	t.Helper()
	p := proxy.NewPrimary(proxy.PrimaryConfig{VM: stillVM{}, Deliver: func([]byte) error { return nil }})
	w := &quietWire{closed: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(t.Context(), w)
	}()
	t.Cleanup(func() { close(w.closed); <-done })
	wireCheckpoint(t, p, 0)
	return p, w
}

func wireCheckpoint(t *testing.T, p *proxy.Primary, epoch uint64) {
	t.Helper()
	for _, err := range []error{
		p.Pause(t.Context()), p.Mark(epoch), p.Resume(t.Context()), p.Received(epoch), p.Loaded(epoch),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// wireFrame returns a UDP datagram behind what stands between the MAC addresses and
// the IP header.
func wireFrame(before string) []byte {
	b := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, before...)
	return append(b, 0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0, 1, 0, 2, 0, 13, 0, 0, 'h', 'e', 'l', 'l', 'o')
}

// A frame that the comparison cannot read waits for its checkpoint: before that only the
// primary has the state from which it was sent.
func TestOutputThatIsNotComparedWaitsForItsCheckpoint(t *testing.T) {
	whole := wireFrame("\x08\x00")
	zero, beyond := bytes.Clone(whole), bytes.Clone(whole)
	binary.BigEndian.PutUint16(zero[16:], 0)
	binary.BigEndian.PutUint16(beyond[16:], 400)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"802.1Q", wireFrame("\x81\x00\x00\x05\x08\x00")},
		{"802.1ad", wireFrame("\x88\xa8\x00\x05\x08\x00")},
		{"PPPoE", wireFrame("\x88\x64\x11\x00\x00\x01\x00\x23\x00\x21")},
		{"total length 0", zero},
		{"total length beyond the frame", beyond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, w := wireProtected(t)
				if err := p.WritePacket(c.frame); err != nil {
					t.Fatal(err)
				}
				if w.left() > 0 {
					t.Error("it has left, and the secondary knows nothing of it")
				}
				wireCheckpoint(t, p, 1)
				if n := w.left(); n != 1 {
					t.Errorf("%d frames have left after the checkpoint", n)
				}
			})
		})
	}
}

// A guest that makes up the lengths in its segments does not end the process that protects it.
func TestSegmentsWithFalseLengthsEndNoProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wireProtected(t)
		defer func() {
			if e := recover(); e != nil {
				t.Errorf("panic: %v", e)
			}
		}()
		segment := func(port, header byte, opts, data string) []byte {
			h := make([]byte, 20)
			h[1], h[3], h[7], h[11], h[13] = 80, port, 100, 1, 0x18
			h[12] = header << 4
			b := append(wireFrame("\x08\x00")[:34], h...)
			b = append(append(b, opts...), data...)
			b[23] = 6
			binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
			return b
		}
		for _, f := range [][]byte{
			segment(9, 15, strings.Repeat("\x01", 40), "x"), // 40 bytes of options
			segment(10, 15, "", ""),                         // a header that says 60 bytes and has 20
			segment(10, 5, "", "x"),
		} {
			if err := p.WritePacket(f); err != nil {
				t.Error(err)
			}
		}
	})
}
