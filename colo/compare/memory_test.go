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
