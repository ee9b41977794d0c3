package compare_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// A long segment that the secondary's guest has sent first leaves in memory that has waited, with each
// byte of the primary's around the data: its headers, and what is behind the packet.
func TestALongSegmentThatHasATwinLeavesAsThePrimarysGuestHasSentIt(t *testing.T) {
	cfg := everything()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 11))
		e := compare.NewEngine(cfg)
		now := time.Unix(1000, 0)
		if err := e.Mark(0); err != nil {
			t.Fatal(err)
		}
		if _, err := e.SecondaryMark(0); err != nil {
			t.Fatal(err)
		}
		seq := r.Uint32()
		vnet := []int{0, 10, 12}[r.IntN(3)]
		say := func(data string, pad int) compare.Frame {
			f := seg{port: 9, seq: seq, ack: 1, flags: ackOnly, data: data, v6: seed%2 == 0, pad: pad}.frame()
			f.Data, f.VNetHdr = append(make([]byte, vnet), f.Data...), vnet
			for i := range pad {
				f.Data[len(f.Data)-1-i] = byte(r.Uint32())
			}
			b := f.Data[vnet:]
			copy(b[:6], []byte{2, 0, 0, 0, 0, byte(r.Uint32())})
			b[len(b)-pad-len(data)-20+13] |= byte(r.UintN(2)) << 3 // PSH
			return f
		}
		for range 20 {
			data := strings.Repeat("abcdefg", 1+r.IntN(400))
			pad, other := r.IntN(2)*r.IntN(9), r.IntN(2)*r.IntN(9)
			p, s := say(data, pad), say(data, other)
			want := bytes.Clone(p.Data)
			if res := e.Secondary(s, now); len(res.Release) > 0 {
				t.Fatalf("seed %d: something leaves before the primary's guest has said it", seed)
			}
			ahead := r.IntN(2) == 0
			was := seq
			if seq += uint32(len(data)); ahead {
				e.Secondary(say("more", 0), now)
			}
			now = now.Add(time.Millisecond)
			res := e.Primary(p, now)
			if len(res.Release) != 1 || res.Release[0].VNetHdr != vnet || !bytes.Equal(res.Release[0].Data, want) {
				t.Fatalf("seed %d: at %d of %d bytes another packet has left, or none", seed, was, len(data))
			}
			left := e.TakeOver(0, res.Release[0])
			clear(p.Data) // whose memory is the caller's
			clear(s.Data)
			if !bytes.Equal(left.Data(), want) {
				t.Fatalf("seed %d: what is kept of it changes with the memory of the caller", seed)
			}
			clear(left.Data())
			e.GiveBack(left)
			if ahead {
				if res := e.Primary(say("more", 0), now); len(res.Release) != 1 {
					t.Fatalf("seed %d: what comes behind it does not leave", seed)
				}
				seq += 4
			}
			e.Tick(now)
			if st := e.Stats(); st.Held > 0 || st.HeldBytes > 0 {
				t.Fatalf("seed %d: %+v", seed, st)
			}
		}
	}
}

func TestALongSegmentThatHasATwinTakesNoMemory(t *testing.T) {
	e := compare.NewEngine(everything())
	if err := e.Mark(0); err != nil {
		t.Fatal(err)
	}
	if _, err := e.SecondaryMark(0); err != nil {
		t.Fatal(err)
	}
	s := seg{port: 9, seq: 1, ack: 1, flags: ackOnly, data: strings.Repeat("d", 5000)}
	p, twin := s.frame(), s.frame()
	now := time.Unix(1000, 0)
	seq := uint32(1)
	if n := testing.AllocsPerRun(100, func() {
		setSeq(p, seq)
		setSeq(twin, seq)
		e.Secondary(twin, now)
		r := e.Primary(p, now)
		if len(r.Release) != 1 {
			t.Fatal("it does not leave")
		}
		e.GiveBack(e.TakeOver(0, r.Release[0]))
		seq += 5000
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
