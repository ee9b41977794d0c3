package filter_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A tables is the section of an Edge as somebody else may write it.
type tables struct {
	conns, halves   []byte
	nConns, nHalves uint32
	old             bool // version 1
}

const (
	connRecord = 62
	halfRecord = 127
)

func (r *tables) Entry(instance uint32) vmstate.Entry {
	e := new(filter.Edge).Entry(instance)
	if r.old {
		e.Version = 1
	}
	return e
}

func (r *tables) VMState(f *vmstate.Fields) {
	f.Uint32("count", &r.nConns)
	f.Bytes("connections", r.conns)
	if !r.old {
		f.Uint32("handshakes", &r.nHalves)
		f.Bytes("halves", r.halves)
	}
}

// recordKey is the beginning of a record of connection i.
func recordKey(i int) []byte {
	b := make([]byte, 44)
	b[0] = 4
	binary.BigEndian.PutUint32(b[8:], 80<<16|uint32(40000+i))
	b[15], b[31] = 1, 2
	return b
}

// odd returns a number that is at the edge of something.
func odd(r *rand.Rand) uint32 {
	return [...]uint32{0, 1, 500, 501, 1000, 9000, 9001, 1 << 16, 1<<30 - 1, 1 << 30, 1<<30 + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, r.Uint32()}[r.IntN(15)]
}

// numbersOf returns n odd numbers, as a record has them.
func numbersOf(r *rand.Rand, n int) (b []byte) {
	for range n {
		b = binary.BigEndian.AppendUint32(b, odd(r))
	}
	return b
}

// hostile returns tables whose records are of connections 0 to 7, most of them each well-formed.
func hostile(r *rand.Rand) *tables {
	x := &tables{old: r.IntN(8) == 0}
	for i := range 8 {
		switch r.IntN(3) {
		case 0:
			b := append(recordKey(i), numbersOf(r, 2)...)
			b = append(b, byte(r.IntN(15)), byte(r.IntN(2)))
			b = append(b, numbersOf(r, 2)...)
			if b[53] == 0 {
				clear(b[54:])
			}
			x.conns, x.nConns = append(x.conns, b...), x.nConns+1
		case 1:
			b := append(recordKey(i), byte(r.IntN(8)), byte(r.IntN(15)))
			b = append(b, numbersOf(r, 7)...)
			binary.BigEndian.PutUint32(b[66:], min(odd(r), 1<<30))
			offers := 0
			if b[44]&1 == 0 {
				b[44] &^= 2
			} else {
				offers = r.IntN(5)
			}
			b = append(b, byte(offers))
			for o := range 4 {
				one := append(numbersOf(r, 3), byte(r.IntN(2)))
				if o >= offers {
					clear(one)
				}
				b = append(b, one...)
			}
			x.halves, x.nHalves = append(x.halves, b...), x.nHalves+1
		}
	}
	if r.IntN(4) == 0 { // and something is wrong with them
		for _, b := range [][]byte{x.conns, x.halves} {
			if len(b) > 0 {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		}
	}
	return x
}

// A peer chooses what a checkpoint carries of connections. Whatever it is, it is refused whole or
// serves: nothing panics, what was a right segment is one and has its flags, no connection is added,
// and what is saved again loads.
func TestWhateverACheckpointSaysOfConnectionsIsRefusedOrServes(t *testing.T) {
	served, refused, held := 0, 0, 0
	for seed := range require.Many[uint64](300, 2000, 100_000) {
		steps := 60
		ok, n := serveHostile(t, fmt.Sprintf("seed %d", seed), rand.New(rand.NewPCG(seed, 41)), func() bool { steps--; return steps >= 0 })
		if held += n; ok {
			served++
		} else {
			refused++
		}
	}
	if served < refused || refused < served/20 || held < served/10 {
		t.Errorf("%d tables have served, %d were refused, %d segments were held: nothing was tried", served, refused, held)
	}
}

// serveHostile gives an Edge hostile tables, and traffic as long as there is more. It reports
// whether the tables were taken, and how many segments were held.
func serveHostile(t *testing.T, name string, r *rand.Rand, more func() bool) (served bool, held int) {
	e, x := new(filter.Edge), hostile(r)
	e.Adopt(established(true))
	if err := loadEdge(t, e, save(t, x)); err != nil {
		var fe *filter.Error
		if !errors.Is(err, filter.ErrEdge) || !errors.As(err, &fe) || e.Len() != 1 {
			t.Fatalf("%s: %v, and %d connections", name, err, e.Len())
		}
		return false, 0
	}
	most := e.Len()
	if most != int(x.nConns+x.nHalves) && !x.old {
		t.Fatalf("%s: %d connections of %d and %d", name, most, x.nConns, x.nHalves)
	}
	rw := filter.NewRewriter(filter.RewriterConfig{Edge: e})
	for epoch := uint64(0); more(); epoch++ {
		toGuest, flags := r.IntN(2) == 0, uint8(r.IntN(64))
		opts := slices.Concat([]byte{1, 1, 8, 10}, numbersOf(r, 2), []byte{1, 1, 5, 10}, numbersOf(r, 2))
		f := segment(toGuest, false, odd(r), odd(r), flags, opts[:[...]int{0, 12, 24}[r.IntN(3)]], make([]byte, r.IntN(3)))
		at := 34
		if !toGuest {
			at = 36
		}
		binary.BigEndian.PutUint16(f[at:], uint16(40000+r.IntN(8)))
		resealed(f)
		n := len(f)
		switch k := r.IntN(12); {
		case k == 0:
			e.Mark(epoch)
		case k == 1:
			e.Received(epoch)
		case k == 2 && r.IntN(4) == 0:
			e.Failover()
		case k == 3 && r.IntN(4) == 0: // another host takes over
			state := save(t, e)
			if e = new(filter.Edge); loadEdge(t, e, state) != nil {
				t.Fatalf("%s: what was saved does not load", name)
			}
			rw = filter.NewRewriter(filter.RewriterConfig{Edge: e})
		case k < 6:
			rw.Outbound(f, 0)
		case toGuest:
			if !e.Inbound(f, 0) {
				held++
			}
		default:
			e.Outbound(f, 0)
		}
		var p packet.Packet
		if p.Parse(f); len(f) != n || !p.IsTCP() || p.TCP().Checksum() != p.TCPChecksum() || p.TCP().Flags() != flags {
			t.Fatalf("%s: %x", name, f)
		}
		if e.Len() > most {
			t.Fatalf("%s: %d connections have become %d", name, most, e.Len())
		}
	}
	again := new(filter.Edge)
	if state := save(t, e); loadEdge(t, again, state) != nil || !bytes.Equal(save(t, again), state) {
		t.Fatalf("%s: what is saved loads otherwise", name)
	}
	return true, held
}

func TestHandshakesThatNoGuestIsInAreRefused(t *testing.T) {
	good := func() *tables {
		b := append(recordKey(0), 1, 7)
		b = append(b, make([]byte, halfRecord-len(b))...)
		b[74] = 1 // an offer
		c := append(recordKey(1), make([]byte, halfRecord-44)...)
		d := append(recordKey(2), make([]byte, connRecord-44)...)
		d[47] = 1
		return &tables{conns: d, nConns: 1, halves: append(b, c...), nHalves: 2}
	}
	for name, c := range map[string]struct {
		change func(x *tables)
		err    error
	}{
		"good":                                 {func(x *tables) {}, nil},
		"of no known kind":                     {func(x *tables) { x.halves[0] = 5 }, filter.ErrEdge},
		"bytes behind an address":              {func(x *tables) { x.halves[16] = 1 }, filter.ErrEdge},
		"no such bits":                         {func(x *tables) { x.halves[44] |= 8 }, filter.ErrEdge},
		"no such scale":                        {func(x *tables) { x.halves[45] = 15 }, filter.ErrEdge},
		"no such window":                       {func(x *tables) { x.halves[66], x.halves[69] = 0x40, 1 }, filter.ErrEdge},
		"too many offers":                      {func(x *tables) { x.halves[74] = 5 }, filter.ErrEdge},
		"numbers of no offer":                  {func(x *tables) { x.halves[74+1+13] = 1 }, filter.ErrEdge},
		"an offer's time that is half there":   {func(x *tables) { x.halves[74+13] = 2 }, filter.ErrEdge},
		"an offer to a guest that was called":  {func(x *tables) { x.halves[halfRecord+74] = 1 }, filter.ErrEdge},
		"a guest that was called, and crossed": {func(x *tables) { x.halves[halfRecord+44] = 2 }, filter.ErrEdge},
		"out of order": {func(x *tables) {
			x.halves = append(slices.Clone(x.halves[halfRecord:]), x.halves[:halfRecord]...)
		}, filter.ErrEdge},
		"twice":                     {func(x *tables) { copy(x.halves[halfRecord:], x.halves[:halfRecord]) }, filter.ErrEdge},
		"complete, and not":         {func(x *tables) { copy(x.conns, x.halves[halfRecord:halfRecord+44]) }, filter.ErrEdge},
		"more than an Edge takes":   {func(x *tables) { x.nHalves = filter.MaxEdge + 1 }, vmstate.ErrBounds},
		"as many as there are none": {func(x *tables) { x.nHalves = 1 << 20 }, vmstate.ErrBounds},
	} {
		x := good()
		c.change(x)
		e := new(filter.Edge)
		e.Adopt(established(true))
		if err := loadEdge(t, e, save(t, x)); !errors.Is(err, c.err) || err != nil && e.Len() != 1 || err == nil && e.Len() != 3 {
			t.Errorf("%s: %v, and %d connections", name, err, e.Len())
		}
	}
	x := good()
	x.old = true
	e := new(filter.Edge)
	if err := loadEdge(t, e, save(t, x)); err != nil || e.Len() != 1 {
		t.Errorf("a section without handshakes: %v, and %d connections", err, e.Len())
	}
}
