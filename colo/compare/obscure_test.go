package compare_test

import (
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A guest may begin a connection with a SYN whose virtio-net header contradicts it, in the
// place of one that both have. What it says on the new one is not more of the old one.
func TestASYNThatIsNotLookedIntoBeginsAConnectionAllTheSame(t *testing.T) {
	wrap := func(a ackSeg, gso byte) compare.Frame {
		h := make([]byte, packet.VNetMergeLen)
		h[1] = gso
		return compare.Frame{Data: append(h, a.frame().Data...), VNetHdr: len(h)}
	}
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	anew := ackSeg{seq: 50, ack: 800, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	later := ackSeg{seq: 51, ack: 900, win: 50, flags: ackOnly}
	begin := func() *rig {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Primary(wrap(syn, 0), x.now)
		x.told("both have the old one", x.Secondary(wrap(syn, 0), x.now), "@99 ack 1000 to 820200")
		return x
	}
	x := begin()
	x.told("it cannot be compared", x.Primary(wrap(anew, packet.GSOUDP), x.now), "!flags")
	x.told("nobody has acknowledged as much of the new one", x.Primary(wrap(later, 0), x.now), "")
	x.told("the other guest does, of the old one", x.Secondary(wrap(later, 0), x.now), "")
	x.mark(1)
	x.told("the checkpoint has all", x.received(1), "@50 ack 800 to 820000, @51 ack 900 to 7300")

	x = begin()
	x.Secondary(wrap(anew, packet.GSOUDP), x.now)
	x.Secondary(wrap(data(51, "abcd"), 0), x.now)
	x.told("the secondary's guest has gone on to another", x.Primary(wrap(ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly}, 0), x.now), "")
	x.mark(1)
	x.told("the checkpoint has it", x.received(1), "@100 ack 1000 to 7400")

	x = newRig(t, everything())
	x.checkpoint(0)
	x.Secondary(wrap(anew, packet.GSOUDP), x.now)
	if n := x.Stats().Conns; n != 0 {
		t.Errorf("%d connections begin with what the secondary's guest alone has said", n)
	}
}
