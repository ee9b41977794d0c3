package compare_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A flow may go on for longer than its numbers last, and no checkpoint comes. What the other guest alone
// says is noticed all the same.
func TestAFlowOfGibibytesWithoutACheckpointIsComparedToItsEnd(t *testing.T) {
	const size, look, total = 65000, 1 << 28, 5 << 30
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprintf("plain %t", plain), func(t *testing.T) {
			cfg := lowering()
			cfg.ReleaseRetransmits = false
			x := newRig(t, cfg)
			if !plain {
				x.TakeNothingAsPlain()
			}
			x.checkpoint(0)
			const base = 1<<32 - 700
			syn := ackSeg{seq: base - 1, ack: 5000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}.frame()
			x.Primary(syn, x.now)
			x.Secondary(syn, x.now)
			at := uint32(base)
			f := ackSeg{seq: at, ack: 5000, win: 100, flags: packet.ACK, data: string(make([]byte, size))}.frame()
			next := func() {
				at += size
				binary.BigEndian.PutUint32(f.Data[34+4:], at)
			}
			x.Primary(f, x.now)
			x.mark(1) // it is covered by this checkpoint, and by no word of the other guest
			x.received(1)
			if _, err := x.SecondaryMark(1); err != nil {
				t.Fatal(err)
			}
			next()
			said := uint64(0)
			for n := uint64(0); n < total; n += size {
				if n/look != said {
					said = n / look
					if r := x.Secondary(f, x.now); len(r.Release) > 0 || r.Diverged {
						t.Fatalf("after %d bytes %d leave, %v", n, len(r.Release), r.Reason)
					}
					x.now = x.now.Add(5 * time.Second)
					if r := x.Tick(x.now); r.Reason != compare.ReasonTimeout || !r.Diverged {
						t.Fatalf("after %d bytes nobody notices that the primary's guest does not say as much", n)
					}
					if r := x.Primary(f, x.now); len(r.Release) != 1 {
						t.Fatalf("after %d bytes what both have said does not leave", n)
					}
				} else {
					x.Primary(f, x.now)
					if r := x.Secondary(f, x.now); len(r.Release) != 1 || r.Diverged {
						t.Fatalf("after %d bytes %d leave, %v", n, len(r.Release), r.Reason)
					}
				}
				next()
			}
		})
	}
}

// What a guest once held is not what it holds when the numbers have come round.
func TestABlockOfLongAgoIsNoBlockOfToday(t *testing.T) {
	for _, plain := range []bool{true, false} {
		x, p, s := opened(t, nil)
		if !plain {
			x.TakeNothingAsPlain()
		}
		block := func(ack uint32) ackSeg {
			b := binary.BigEndian.AppendUint32([]byte{1, 1, packet.OptSACK, 10}, 2000)
			a := bareAt(100, ack, 50)
			a.opts = string(binary.BigEndian.AppendUint32(b, 2400))
			return a
		}
		both := block(1000)
		s(both)
		x.told("both hold something beyond a gap", p(both), "@100 ack 1000 to 7400")
		ack := uint32(1000)
		for range 16 {
			ack += 1 << 28
			if s(bareAt(100, ack, 50)); ack != 1000 {
				p(bareAt(100, ack, 50))
			}
		}
		r := p(block(1000))
		for _, f := range r.Release {
			var v packet.Packet
			v.Parse(f.Data)
			for kind, data, rest, ok := packet.NextOption(v.TCP().Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
				if kind == packet.OptSACK {
					t.Errorf("plain %t: %x is acknowledged, which the other guest has held 4 GiB ago", plain, data)
				}
			}
		}
	}
}

// The secondary's guest may repeat what a checkpoint has made it say. The primary's need not.
func TestWhatTheOtherGuestRepeatsOfACheckpointIsNotWaitedFor(t *testing.T) {
	for _, retransmits := range []bool{false, true} {
		cfg := lowering()
		cfg.ReleaseRetransmits = retransmits
		x := newRig(t, cfg)
		x.checkpoint(0)
		syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}.frame()
		x.Primary(syn, x.now)
		x.Secondary(syn, x.now)
		x.Primary(data(100, "abcd").frame(), x.now)
		x.checkpoint(1)
		x.Secondary(data(100, "abcd").frame(), x.now)
		x.now = x.now.Add(time.Minute)
		if r := x.Tick(x.now); r.Diverged {
			t.Errorf("retransmits %t: a checkpoint is asked for, %v", retransmits, r.Reason)
		}
		x.Secondary(data(104, "efgh").frame(), x.now)
		x.now = x.now.Add(time.Minute)
		if r := x.Tick(x.now); r.Reason != compare.ReasonTimeout {
			t.Errorf("retransmits %t: nobody notices what only the other guest has said", retransmits)
		}
	}
}
