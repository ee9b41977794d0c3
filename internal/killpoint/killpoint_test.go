package killpoint

import (
	"bytes"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// loopback returns both ends of a TCP connection.
func loopback(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// What the peer got, when the limit was met, is all that it ever gets.
func TestAStreamEndsAtTheChosenByte(t *testing.T) {
	data := make([]byte, 1000)
	rand.NewChaCha8([32]byte{}).Read(data)
	for _, test := range []struct {
		name    string
		n       int64
		fromEnd bool
		want    int
		write   func(net.Conn)
	}{
		{"in the second write", 700, false, 700, func(c net.Conn) {
			c.Write(data[:500])
			c.Write(data[500:])
		}},
		{"at the end of a write", 500, false, 500, func(c net.Conn) { c.Write(data[:500]) }},
		{"inside a vectored write", 333, false, 333, func(c net.Conn) {
			c.(*limitedConn).WriteBuffers(&net.Buffers{data[:300], data[300:310], data[310:]})
		}},
		{"after a vectored write", 333, false, 333, func(c net.Conn) {
			c.(*limitedConn).WriteBuffers(&net.Buffers{data[:300], data[300:310]})
			c.Write(data[310:])
		}},
		{"from the end", 10, true, 990, func(c net.Conn) {
			c.(*limitedConn).WriteBuffers(&net.Buffers{data[:300], data[300:]})
		}},
		{"from the end of a long enough write", 500, true, 500, func(c net.Conn) {
			c.Write(data[:200])
			c.Write(data[200:])
		}},
	} {
		a, b := loopback(t)
		k := new(Point)
		c := k.Conn(event.ModePrimary, a)
		hit := int64(-1)
		k.limit.set(test.n, test.fromEnd, func(done int64) { hit = done; a.CloseWrite() })
		test.write(c)
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data[:test.want]) || hit != int64(test.want) {
			t.Errorf("%s: %d bytes arrived, the limit was met after %d, want %d (%v)", test.name, len(got), hit, test.want, err)
		}
	}
}

func TestAReaderStopsAtTheChosenByte(t *testing.T) {
	a, b := loopback(t)
	k := new(Point)
	c := k.Conn(event.ModeSecondary, a)
	if _, err := c.Write([]byte("not counted")); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 100)
	if _, err := b.Write(data); err != nil {
		t.Fatal(err)
	}
	hit := int64(-1)
	k.limit.set(678, false, func(done int64) { hit = done })
	got := make([]byte, 0, 1000)
	for buf := make([]byte, 100); hit < 0; {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if hit != 678 || !bytes.Equal(got, data[:678]) {
		t.Errorf("%d bytes read, the limit was met after %d", len(got), hit)
	}
}

func TestWithoutAPlaceToStopNothingIsInTheWay(t *testing.T) {
	var k *Point
	a, _ := loopback(t)
	if c := k.Conn(event.ModePrimary, a); c != net.Conn(a) {
		t.Errorf("the connection became a %T", c)
	}
	k.Step(event.ModePrimary, "pause", 0)
	k.Trace(event.ModePrimary, ">", colo.VMStateSize, 1)
	k.Committed(1)
}

func TestASideStopsBeforeItsStepInItsCheckpointOnly(t *testing.T) {
	for side, ops := range stopBefore {
		ops = maps.Clone(ops)
		for _, op := range Steps[side] {
			ops[op] = op // each step is a place, too
		}
		for place, op := range ops {
			stops := 0
			k := &Point{Place: place, Epoch: 5, Rand: rand.New(rand.NewPCG(1, 2)), Stop: func(string) { stops++ }}
			step := func(op string, epoch uint64) { k.Step(event.Mode(side), op, epoch) }
			step(op, 4)
			step(op, 6)
			step("another step", 5)
			if stops != 0 {
				t.Errorf("%s %s: stopped too early", side, place)
			}
			step(op, 5)
			if stops != 1 {
				t.Errorf("%s %s: did not stop before %q", side, place, op)
			}
			if step(op, 5); stops != 1 { // of another session
				t.Errorf("%s %s: stopped again", side, place)
			}
		}
	}
	for _, side := range []string{onPrimary, onSecondary} {
		for _, place := range Places[slices.Index(Places, AtEach)+1:] {
			if stopBefore[side][place] == "" && !(side == onSecondary && place == AtReceived) {
				t.Errorf("%s has no step for %s", side, place)
			}
		}
	}
}

// What it has said, vmstate-received, has left; nothing has been loaded.
func TestASecondaryStopsInTheMiddleOfItsCommit(t *testing.T) {
	a, b := loopback(t)
	stops := 0
	k := &Point{Place: AtReceived, Epoch: 5, Stop: func(string) { stops++ }}
	c := k.Conn(event.ModeSecondary, a)
	for epoch := uint64(4); epoch <= 6; epoch++ {
		for _, op := range Steps[onSecondary] {
			k.Step(event.ModeSecondary, op, epoch)
			before := stops
			if op == "send checkpoint-reply" || op == "commit" || op == "send vmstate-loaded" {
				if _, err := c.Write([]byte(op)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(b, make([]byte, len(op))); err != nil {
					t.Fatal(err)
				}
			}
			if want := epoch == 5 && op == "commit"; (stops > before) != want {
				t.Errorf("checkpoint %d, %s: stops %v", epoch, op, !want)
			}
		}
	}
}
