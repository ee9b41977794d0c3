package compare_test

import (
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/compare"
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
