package proxy_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A carried is the section of a NIC as somebody else may write it.
type carried struct {
	frames, size            uint32
	nConns, nHalves, nScale uint32
	data                    []byte
	known                   proxy.Neighbors
	conns, halves, scales   []byte
}

// The lengths of the records of its tables.
const (
	carriedKey  = 44
	carriedConn = 62
	carriedHalf = 127
)

func (c *carried) VMState(f *vmstate.Fields) {
	bytesOf := func(name string, b *[]byte, n uint32, size int) {
		f.Bytes(name, vmstate.Resize(f, b, uint64(n)*uint64(size), 1<<24))
	}
	f.Uint32("frames", &c.frames)
	f.Uint32("size", &c.size)
	bytesOf("data", &c.data, c.size, 1)
	f.Struct("neighbors", "lockstep-net-neighbors", 1, c.known.VMState)
	f.Struct("connections", "lockstep-net-edge", 2, func(f *vmstate.Fields) {
		f.Uint32("count", &c.nConns)
		bytesOf("connections", &c.conns, c.nConns, carriedConn)
		f.Uint32("handshakes", &c.nHalves)
		bytesOf("halves", &c.halves, c.nHalves, carriedHalf)
	})
	f.Struct("windows", "lockstep-net-windows", 1, func(f *vmstate.Fields) {
		f.Uint32("count", &c.nScale)
		bytesOf("scales", &c.scales, c.nScale, compare.ScaleRecord)
	})
}

// PreSave and PostLoad are those of the addresses.
func (c *carried) PreSave() error          { return c.known.PreSave() }
func (c *carried) PostLoad(v uint32) error { return c.known.PostLoad(v) }

// inserted returns the records of b, which are in ascending order, and r among them. Another one of the
// connection of r goes.
func inserted(b, r []byte) []byte {
	for at := 0; ; at += len(r) {
		switch {
		case at == len(b) || bytes.Compare(b[at:at+carriedKey], r[:carriedKey]) > 0:
			return slices.Insert(b, at, r...)
		case bytes.Equal(b[at:at+carriedKey], r[:carriedKey]):
			copy(b[at:], r)
			return b
		}
	}
}

// without returns the records of b, each n bytes long, but for that of a connection.
func without(b []byte, n int, key []byte) []byte {
	for at := 0; at < len(b); at += n {
		if bytes.Equal(b[at:at+carriedKey], key) {
			return slices.Delete(b, at, at+n)
		}
	}
	return b
}

// hostilePort is the first of the ports of connections of which a hostile primary lies.
const hostilePort, hostilePorts = 45000, 16

// keyOf returns the connection of a port as the records have it.
func (o *ordeal) keyOf(port uint16) []byte {
	var p packet.Packet
	var k packet.Key
	p.Parse(o.frame(false, ordealSegment{port: port, way: usualWay}, markGood))
	p.Key(&k)
	b := make([]byte, carriedKey)
	b[0] = 4
	if k.Kind == packet.IP6 {
		b[0] = 6
	}
	b[1] = k.Layers
	binary.BigEndian.PutUint16(b[2:], k.VLAN)
	binary.BigEndian.PutUint32(b[4:], k.Outer)
	binary.BigEndian.PutUint32(b[8:], k.Ports)
	copy(b[12:], k.Src[:])
	copy(b[28:], k.Dst[:])
	return b
}

// lie adds to c whatever a hostile primary says of the connection of a port.
func (o *ordeal) lie(c *carried, port uint16) {
	r, key := o.r, o.keyOf(port)
	numbers := func(b []byte, n int) []byte {
		for range n {
			b = binary.BigEndian.AppendUint32(b, [...]uint32{0, 1, 1000, 1<<30 - 1, 1 << 30, 1<<31 - 1, 1 << 31, 1<<32 - 1, r.Uint32()}[r.IntN(9)])
		}
		return b
	}
	c.conns, c.halves = without(c.conns, carriedConn, key), without(c.halves, carriedHalf, key)
	switch r.IntN(3) {
	case 0:
		b := append(numbers(slices.Clone(key), 2), byte(r.IntN(15)), byte(r.IntN(2)))
		if binary.BigEndian.Uint64(b[carriedKey:]) == 0 {
			b[carriedKey] = 1 // else it needs no translation
		}
		if b = numbers(b, 2); b[53] == 0 {
			clear(b[54:])
		}
		c.conns = inserted(c.conns, b)
	case 1:
		b := numbers(append(slices.Clone(key), byte(r.IntN(8)), byte(r.IntN(15))), 7)
		binary.BigEndian.PutUint32(b[66:], min(binary.BigEndian.Uint32(b[66:]), 1<<30))
		offers := r.IntN(5)
		if b[44]&1 == 0 {
			b[44], offers = b[44]&^2, 0
		}
		b = append(b, byte(offers))
		for i := range 4 {
			one := append(numbers(nil, 3), byte(r.IntN(2)))
			if i >= offers {
				clear(one)
			}
			b = append(b, one...)
		}
		c.halves = inserted(c.halves, b)
	}
	if r.IntN(2) == 0 {
		c.scales = inserted(c.scales, append(key, byte(r.IntN(15))))
	}
}

// hostile returns what of a checkpoint's state comes from a primary that lies: of connections which it
// does not have, or which have not begun, and of packets that its guest has not sent.
func (o *ordeal) hostile(state []byte) []byte {
	c, r := new(carried), o.r
	var in, out vmstate.Registry
	o.must(in.Register(o.prim.Entry(0), c))
	o.must(in.LoadDevices(state, nil))
	o.must(in.Commit())
	for port := range uint16(hostilePorts) {
		o.lie(c, hostilePort+port)
	}
	for _, x := range o.clients {
		if _, begun := o.p.g.conns[x.port]; !begun {
			o.lie(c, x.port)
		}
	}
	for range r.IntN(20) {
		f := o.wrap(o.frame(r.IntN(4) == 0, ordealSegment{
			port: uint16(hostilePort + r.IntN(hostilePorts)), seq: r.Uint32(), ack: r.Uint32(), flags: byte(r.IntN(64)),
			stamp: r.Uint32(), echo: r.Uint32(), data: make([]byte, r.IntN(50)), way: usualWay,
		}, markOdd), r.IntN(2) == 0, true)
		if r.IntN(3) == 0 {
			f[len(f)-1-r.IntN(20)] ^= 1 << r.IntN(8)
		}
		if r.IntN(8) == 0 {
			f = f[:1+r.IntN(len(f))]
		}
		c.data = append(binary.BigEndian.AppendUint32(c.data, uint32(len(f))), f...)
		c.frames++
	}
	c.size = uint32(len(c.data))
	c.nConns, c.nHalves, c.nScale = uint32(len(c.conns)/carriedConn), uint32(len(c.halves)/carriedHalf), uint32(len(c.scales)/compare.ScaleRecord)
	o.must(out.Register(o.prim.Entry(0), c))
	var b bytes.Buffer
	q := qemufile.NewWriter(&b)
	o.must(out.SaveDevices(q))
	vmstate.PutEOF(q)
	o.must(q.Flush())
	return b.Bytes()
}

// A primary lies in each of its checkpoints. All that is promised of connections that begin after it has
// lied of them, and of those of which it says the truth, holds, through failovers; and nothing is kept.
func TestConnectionsAreServedBesideWhateverACheckpointSaysOfOthers(t *testing.T) {
	left, failovers := 0, 0
	for seed := range require.Many[uint64](12, 60, 2000) {
		o := runOrdeal(t, seed, 400, func(o *ordeal) { o.lies = true })
		if o.wrong != "" {
			t.Fatalf("seed %d: %s\n%s", seed, o.wrong, strings.Join(o.trace, "\n"))
		}
		left, failovers = left+o.left, failovers+o.failovers
	}
	if left == 0 || failovers == 0 {
		t.Error("nothing was tried")
	}
}

// Bytes choose what happens in that test, and what is said.
func FuzzConnectionsAreServedBesideWhateverACheckpointSays(f *testing.F) {
	for seed := range uint64(8) {
		b, r := make([]byte, 1000), rand.New(rand.NewPCG(seed, 3))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o := runOrdeal(t, 0, 150, func(o *ordeal) { o.lies, o.r = true, rand.New(&fuzzed{b, rand.NewPCG(1, 1)}) })
		if o.wrong != "" {
			t.Fatalf("%s\n%s", o.wrong, strings.Join(o.trace, "\n"))
		}
	})
}

// A fuzzed has a number from each byte of a fuzzer, and from then on others.
type fuzzed struct {
	b    []byte
	then *rand.PCG
}

func (s *fuzzed) Uint64() uint64 {
	if len(s.b) == 0 {
		return s.then.Uint64()
	}
	v := uint64(s.b[0])
	s.b = s.b[1:]
	return v * 0x0101010101010101
}
