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

func FuzzCompare(f *testing.F) {
	f.Add([]byte{0, 100, 50, push, 4, 3, 100, 50, push, 4, 6, 0, 0, 0, 0, 7, 0, 0, 0, 0}, false)
	f.Add([]byte{3, 100, 50, 2, 0, 0, 90, 50, 2, 0, 0, 91, 50, 17, 9, 3, 101, 50, 17, 9}, false)
	f.Add([]byte{16, 100, 50, push, 4, 12, 9, 0, 7, 0, 0, 0, 0, 65, 1, 2, 4, 3}, true)
	f.Fuzz(func(t *testing.T, script []byte, strict bool) {
		x := newRig(t, compare.Config{Strict: strict, MaxBytes: 1 << 16, MaxQueue: 3, MaxConns: 3, Marks: len(script)%2 == 0})
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
			fr := seg{port: uint16(op >> 6), seq: uint32(int8(next())), ack: uint32(next()), flags: next(), data: strings.Repeat("x", int(next()&15)), v6: op&32 != 0}.frame()
			if op&16 != 0 && len(script) > 3 { // break it
				fr.Data[int(next())%len(fr.Data)] = next()
				fr.VNetHdr = int(int8(next()))
			}
			x.now = x.now.Add(time.Duration(op) * 10 * time.Millisecond)
			switch op & 7 {
			case 0, 1, 2:
				sent++
				if take(x.Primary(fr, x.now), nil); full {
					sent--
				}
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
		if left != sent && !strict { // a strict engine loses packets, as QEMU does
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
