package compare_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// Two guests send the same stream, cut, repeated and padded each in its own
// way, and the engine sees the packets of either in the order of their sending,
// interleaved at random. In half of the runs one byte of the secondary's differs.
func TestStreamsAreComparedHoweverTheyAreCut(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		size := 1 + rnd.IntN(400)
		stream := make([]byte, size)
		for i := range stream {
			stream[i] = 'a' + byte(rnd.IntN(26))
		}
		isn := rnd.Uint32()
		if seed%3 == 0 {
			isn = -uint32(rnd.IntN(size)) // across the wrap
		}
		bad := -1
		if seed%2 == 1 {
			bad = rnd.IntN(size)
		}
		cut := func(data []byte) (segs []seg) {
			for at := 0; at < size; {
				n := min(1+rnd.IntN(100), size-at)
				if rnd.IntN(5) == 0 && at > 0 { // go back: a retransmission, cut anew
					at -= rnd.IntN(at + 1)
				}
				segs = append(segs, seg{port: 7, seq: isn + uint32(at), ack: 5, flags: push, data: string(data[at : at+n]), id: uint16(rnd.Uint32()), pad: rnd.IntN(7), v6: seed%5 == 0})
				at += n
			}
			return segs
		}
		theirs := bytes.Clone(stream)
		if bad >= 0 {
			theirs[bad] = '#'
		}
		ps, ss := cut(stream), cut(theirs)
		x := newRig(t, compare.Config{ReleaseRetransmits: true})
		released, sent, said := 0, 0, 0 // said: how far the secondary's stream has come
		diverged := false
		check := func(r compare.Result) {
			for _, f := range r.Release {
				released++
				var p packet.Packet
				p.Parse(f.Data)
				from := int(p.TCP().Seq() - isn)
				to := from + len(p.TCP().Payload())
				if string(p.TCP().Payload()) != string(stream[from:to]) {
					t.Fatalf("seed %d: released %q for bytes %d to %d", seed, p.TCP().Payload(), from, to)
				}
				if to > said {
					t.Fatalf("seed %d: released up to %d, the secondary has said %d", seed, to, said)
				}
				if bad >= 0 && to > bad {
					t.Fatalf("seed %d: released bytes up to %d, byte %d differs", seed, to, bad)
				}
			}
			diverged = diverged || r.Diverged
		}
		for len(ps)+len(ss) > 0 {
			if len(ss) == 0 || len(ps) > 0 && rnd.IntN(2) == 0 {
				check(x.p(ps[0]))
				ps = ps[1:]
				sent++
			} else {
				said = max(said, int(ss[0].seq-isn)+len(ss[0].data))
				check(x.s(ss[0]))
				ss = ss[1:]
			}
		}
		if bad < 0 && (diverged || released != sent) {
			t.Fatalf("seed %d: equal streams: diverged %t, %d of %d packets left", seed, diverged, released, sent)
		}
		if bad >= 0 && !diverged {
			t.Fatalf("seed %d: byte %d differs, and nobody has noticed", seed, bad)
		}
		x.mark(0)
		if r := x.received(0); released+len(r.Release) != sent {
			t.Fatalf("seed %d: %d packets sent, %d left, %d at the checkpoint", seed, sent, released, len(r.Release))
		}
		if s := x.Stats(); s.Held != 0 || s.HeldBytes != 0 {
			t.Fatalf("seed %d: %+v", seed, s)
		}
	}
}

// fuzzed returns a frame of some kind by the bytes of a fuzzer.
func fuzzed(op byte, next func() byte) compare.Frame {
	v6 := op&32 != 0
	s := seg{port: uint16(op >> 6), seq: uint32(int8(next())), ack: uint32(next()), flags: next(), v6: v6}
	shape := next()
	s.data = strings.Repeat("x", int(shape&15))
	f := s.frame()
	switch shape >> 4 {
	default:
		return f
	case 1: // with options
		at := packet.EthernetLen + packet.IPv4Len + packet.TCPLen
		if v6 {
			at += packet.IPv6Len - packet.IPv4Len
		}
		for i := at; i < len(f.Data); i++ {
			f.Data[i] = next()
		}
		f.Data[at-packet.TCPLen+12] = byte(5+next()%11) << 4
	case 2:
		h := []byte{0, 53, 0, byte(s.ack), 0, 12, 0, 0, byte(s.seq), 1, 2, 3}
		f = ip(v6, packet.ProtoUDP, 1, h, 0)
	case 3:
		f = ip(v6, s.flags, uint16(s.ack), []byte{next(), next(), next(), next(), 5, 6, 7, 8, 9, 10, 11, 12}, 0)
	case 4: // an address
		f = nd(133+byte(s.ack&3), byte(s.flags&3), byte(s.seq&3))
		if s.flags&64 != 0 {
			clear(f.Data[packet.EthernetLen+8:][:16])
		}
	case 5:
		f = arp(1+byte(s.ack&1), byte(s.flags&3), byte(s.seq&3), 1)
	case 6: // a fragment
		if !v6 {
			f.Data[packet.EthernetLen+6], f.Data[packet.EthernetLen+7] = byte(s.seq)&0x3f, next()&3
		}
	case 7: // in a network of its own
		f.Data = kindsVLAN(f.Data, "\x81\x00\x00"+string(rune(s.flags&3)))
	case 8:
		f.Data = asPPPoE(f.Data)
	case 9: // from another address
		if v6 {
			f.Data[packet.EthernetLen+8+15] = next() & 3
		}
	case 10: // neither IP nor ARP
		f.Data[12] = 0x88
	}
	return f
}

// turned gives a segment of a guest the addresses and ports of the peer's.
func turned(f compare.Frame) compare.Frame {
	var p packet.Packet
	if p.ParseVNet(f.Data, f.VNetHdr); !p.IsTCP() {
		return f
	}
	swap := func(b []byte, n int) {
		for i := range n {
			b[i], b[n+i] = b[n+i], b[i]
		}
	}
	swap(p.TCP(), 2)
	if p.Kind == packet.IP4 {
		swap(p.IPv4()[12:], 4)
	} else {
		swap(p.IPv6()[8:], 16)
	}
	return f
}

// Whatever two guests and a peer send, and however an engine is configured, each packet of the
// primary's guest leaves once, by the failover at the latest. One that lowers acknowledgments
// makes some packets of its own, and so it is only asked whether anything is left.
func FuzzCompare(f *testing.F) {
	f.Add([]byte{0, 100, 50, push, 4, 3, 100, 50, push, 4, 6, 0, 0, 0, 0, 7, 0, 0, 0, 0}, uint8(0))
	f.Add([]byte{3, 100, 50, 2, 0, 0, 90, 50, 2, 0, 0, 91, 50, 17, 9, 3, 101, 50, 17, 9}, uint8(0))
	f.Add([]byte{16, 100, 50, push, 4, 12, 9, 0, 7, 0, 0, 0, 0, 65, 1, 2, 4, 3}, uint8(1))
	for shape := range byte(11) {
		f.Add(bytes.Repeat([]byte{32, 100, 50, push, shape << 4, 3, 7, 9, 35, 100, 50, push, shape << 4, 3, 7, 9, 6, 7}, 4), 0xfe-shape&1<<1)
	}
	f.Fuzz(func(t *testing.T, script []byte, how uint8) {
		is := func(bit int) bool { return how>>bit&1 != 0 }
		strict, lowers := is(0), is(1)
		x := newRig(t, compare.Config{
			Strict: strict, MaxBytes: 1 << 16, MaxQueue: 3, MaxConns: 3, Marks: len(script)%2 == 0,
			LowerAcks: lowers, HoldUncompared: is(2), CompareVLAN: is(3), CompareARP: is(4), PatientAcks: is(5), ReleaseRetransmits: is(6),
			Adaptive: is(7), Strikes: 1,
		})
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return b
		}
		var epoch uint64
		sent, left, full := 0, 0, false
		take := func(r compare.Result, err error) {
			left += len(r.Release)
			full = r.Full
		}
		for len(script) > 0 {
			op := next()
			fr := fuzzed(op, next)
			if op&16 != 0 && len(script) > 3 { // break it
				fr.Data[int(next())%len(fr.Data)] = next()
				fr.VNetHdr = int(int8(next()))
			}
			x.now = x.now.Add(time.Duration(op) * 10 * time.Millisecond)
			switch op & 7 {
			case 0, 1:
				sent++
				if take(x.Primary(fr, x.now), nil); full {
					sent--
				}
			case 2:
				x.Inbound(turned(fr))
			case 3, 4, 5:
				take(x.Secondary(fr, x.now), nil)
			case 6:
				if x.Mark(epoch) == nil {
					epoch++
				}
			case 7:
				take(x.Received(epoch - 1))
				take(x.SecondaryMark(epoch - 1))
				x.Loaded(epoch - 1)
				take(x.Tick(x.now), nil)
			}
			if s := x.Stats(); s.HeldBytes > 1<<16+1<<11 {
				t.Fatalf("%+v", s)
			}
		}
		take(x.Failover(), nil)
		if left != sent && !strict && !lowers { // a strict engine loses packets, as QEMU does
			t.Fatalf("%d packets were sent, %d left", sent, left)
		}
		if s := x.Stats(); !strict && (s.Held != 0 || s.HeldBytes != 0) {
			t.Fatalf("%+v", s)
		}
	})
}

func setSeq(f compare.Frame, seq uint32) {
	packet.TCP(f.Data[34:]).SetSeq(seq)
}
