package compare_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A packet leaves in the memory in which it has waited, whatever lets it leave, and all
// memory is there for the next packets when it has left.
func TestWhatHasLeftLeavesItsMemoryToOthers(t *testing.T) {
	for name, cfg := range map[string]compare.Config{
		"default": {Marks: true, LowerAcks: true}, "strict": {Marks: true, Strict: true},
	} {
		t.Run(name, func(t *testing.T) {
			between(t, cfg, func(x *pairing) {
				round := func(epoch uint64) {
					x.Mark(epoch)
					x.Received(epoch)
					x.SecondaryMark(epoch)
					x.Loaded(epoch)
					seq := uint32(1000*epoch + 1)
					s := seg{port: uint16(epoch), seq: seq, ack: 1, flags: push, data: "waits for its twin"}
					x.pri <- s.frame().Data
					x.sec <- s.frame().Data
					s.seq += uint32(len(s.data))
					s.data = "has a twin that waits"
					x.sec <- s.frame().Data
					synctest.Wait()
					x.pri <- s.frame().Data
					x.pri <- udp("waits").Data
					x.sec <- udp("waits").Data
					x.pri <- udp("waits for a checkpoint").Data
					synctest.Wait()
					x.Mark(epoch + 1)
					x.Received(epoch + 1)
					x.pri <- udp("has no session").Data
					x.Failover()
					x.pri <- udp("neither has this one").Data
					synctest.Wait()
				}
				round(0)
				x.out.mu.Lock()
				n := len(x.out.got)
				x.out.mu.Unlock()
				if n != 6 {
					t.Errorf("%d packets have left: %q", n, x.out.got)
				}
				kept := x.Kept()
				for range 20 {
					round(0)
				}
				if wait, leave := x.InUse(); wait != 0 || leave != 0 {
					t.Errorf("%d and %d bytes are in use", wait, leave)
				}
				if now := x.Kept(); now > 2*kept {
					t.Errorf("%d bytes are kept, %d at first", now, kept)
				}
			})
		})
	}
}

// MaxBytes is of memory, and not of the packets in it: 1,100 bytes take 2 KiB. Memory
// that is not in use is bounded too, whatever sizes the packets had that it was for.
func TestMemoryIsBoundedWhateverSizesPacketsHave(t *testing.T) {
	const limit = 1 << 16
	between(t, compare.Config{Marks: true, MaxBytes: limit}, func(x *pairing) {
		epoch := uint64(0)
		next := func() {
			x.Mark(epoch)
			x.Received(epoch)
			x.SecondaryMark(epoch)
			x.Loaded(epoch)
			epoch++
			synctest.Wait()
		}
		next()
		for _, size := range []int{10, 200, 500, 1100, 3000, 9000, 40000} {
			p := udp(strings.Repeat("x", size)).Data
			n := 0
			for x.WritePacket(p) == nil {
				n++
			}
			if s, _ := x.Stats(); n == 0 || s.HeldBytes > limit || s.HeldBytes < n*len(p) {
				t.Errorf("%d packets of %d bytes are held in %d bytes", n, len(p), s.HeldBytes)
			}
			next()
			if wait, leave := x.InUse(); wait != 0 || leave != 0 || x.Kept() > limit || x.Kept() < limit/2 {
				t.Errorf("after packets of %d bytes %d and %d are in use, and %d kept", len(p), wait, leave, x.Kept())
			}
		}
	})
}

// A packet that takes more than all of the memory is held if it is the only one: it
// would never leave otherwise.
func TestTheOnlyPacketAlwaysHasRoom(t *testing.T) {
	between(t, compare.Config{Marks: true, MaxBytes: 1 << 10}, func(x *pairing) {
		x.Mark(0)
		x.Received(0)
		x.SecondaryMark(0)
		p := udp(strings.Repeat("x", 2000)).Data
		if err := x.WritePacket(p); err != nil {
			t.Fatal(err)
		}
		if err := x.WritePacket(p); err != compare.ErrFull {
			t.Errorf("%v, want ErrFull", err)
		}
		x.sec <- p
		x.Mark(1)
		x.Received(1)
		synctest.Wait()
		if len(x.out.got) != 1 {
			t.Errorf("%d packets have left", len(x.out.got))
		}
	})
}

// A part of a segment has less memory in use than it has.
func TestAPartOfASegmentGivesAllOfItsMemoryBack(t *testing.T) {
	between(t, lowering(), func(x *pairing) {
		x.Mark(0)
		x.Received(0)
		x.SecondaryMark(0)
		syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
		x.pri <- syn.frame().Data
		x.sec <- syn.frame().Data
		whole := ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: strings.Repeat("x", 1400)}
		between := func(from, to int) []byte {
			s := whole
			s.seq, s.data = uint32(100+from), whole.data[from:to]
			return s.frame().Data
		}
		x.pri <- whole.frame().Data
		for _, s := range [][]byte{between(0, 1000), between(0, 1000), between(1000, 1100), between(1000, 1100), between(1100, 1400)} {
			x.sec <- s
			synctest.Wait()
		}
		if len(x.out.got) != 4 {
			t.Errorf("left: %q", x.out.got)
		}
		if wait, leave := x.InUse(); wait != 0 || leave != 0 {
			t.Errorf("%d and %d bytes are in use", wait, leave)
		}
	})
}

// An engine asks for a checkpoint when half of its memory is in use, whatever waits there,
// and takes packets until all of it is.
func TestACheckpointIsAskedForAtHalfOfTheMemory(t *testing.T) {
	const limit = 1 << 12
	unknown := func() compare.Frame {
		f := udp("x")
		f.Data[12], f.Data[13] = 0x99, 0x99
		return f
	}
	mangled := func() compare.Frame {
		f := udp("x")
		f.Data[38], f.Data[39] = 0xff, 0xff // the length of the datagram
		return f
	}
	for name, packet := range map[string]func() compare.Frame{
		"datagrams":        func() compare.Frame { return udp("x") },
		"what is unknown":  unknown,
		"what is mangled":  mangled,
		"plain segments":   func() compare.Frame { return seg{port: 1, seq: 100, ack: 1, flags: push, data: "x"}.frame() },
		"refused segments": func() compare.Frame { return seg{port: 1, seq: 100, ack: 1, flags: packet.RST}.frame() },
	} {
		x := newRig(t, compare.Config{Marks: true, MaxBytes: limit, HoldUncompared: true})
		x.checkpoint(0)
		for {
			r := x.Primary(packet(), x.now)
			if r.Full {
				break
			}
			held := x.Stats().HeldBytes
			if len(r.Release) != 0 || held > limit {
				t.Fatalf("%s: %d bytes are held of %d: %s", name, held, limit, show(r))
			}
			before := held - limit/32
			if past := before <= limit/2 && held > limit/2; r.Diverged != past {
				t.Errorf("%s: with %d bytes of %d: %s", name, held, limit, show(r))
			}
		}
		if held := x.Stats().HeldBytes; held != limit {
			t.Errorf("%s: full with %d bytes of %d", name, held, limit)
		}
	}
}

// A SYN of the secondary's guest for which there is no memory begins a connection all the
// same, and what follows it says nothing of the one before.
func TestASYNThatFindsNoMemoryLetsNothingLeaveOnTheConnectionBeforeIt(t *testing.T) {
	cfg := lowering()
	cfg.MaxBytes = 1 << 12
	x := newRig(t, cfg)
	x.checkpoint(0)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Primary(syn.frame(), x.now)
	x.want("both accept a connection", x.Secondary(syn.frame(), x.now), "SYN")
	more := ackSeg{seq: 100, ack: 1400, win: 50, flags: packet.ACK}
	x.want("the primary's guest has got more", x.Primary(more.frame(), x.now), "")
	waits := 0
	for ; x.Stats().Dropped == 0; waits++ {
		x.Secondary(udp("x"), x.now)
	}
	syn.seq, syn.ack = 70000, 90000
	x.want("the secondary's guest accepts another one", x.Secondary(syn.frame(), x.now), "")
	if d := x.Stats().Dropped; d != 2 {
		t.Fatalf("%d packets found no memory, want 2", d)
	}
	for range waits - 1 {
		x.want("there is memory again", x.Primary(udp("x"), x.now), "x")
	}
	x.want("and speaks on it", x.Secondary(ackSeg{seq: 70001, ack: 90000, win: 50, flags: packet.ACK}.frame(), x.now), "")
	x.want("the checkpoint has the first one", x.checkpoint(1), "ack1400")
}
