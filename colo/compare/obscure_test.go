package compare_test

import (
	"strings"
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

// The secondary's guest may begin another connection with a SYN that the comparison does not
// have. Until the receipt that guest may still be the one that goes on, and what it acknowledges
// of its new connection is nothing that it has acknowledged of the old one.
func TestWhatTheOtherGuestAcknowledgesBehindASYNThatWasMissedCoversNothing(t *testing.T) {
	plain := func(a ackSeg) compare.Frame {
		return compare.Frame{Data: append(make([]byte, packet.VNetMergeLen), a.frame().Data...), VNetHdr: packet.VNetMergeLen}
	}
	anew := ackSeg{seq: 50, ack: 800, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	for name, miss := range map[string]func(x *rig){
		"it is not looked into": func(x *rig) {
			f := plain(anew)
			f.Data[1] = packet.GSOUDP
			x.Secondary(f, x.now)
		},
		"there is no memory for it": func(x *rig) {
			a := anew
			a.data = strings.Repeat("x", 3000)
			x.told("", x.Secondary(plain(a), x.now), "!limit")
		},
		"the queue is full": func(x *rig) {
			for i := range uint32(5) {
				x.Secondary(plain(data(104+4*i, "abcd")), x.now)
			}
			x.told("", x.Secondary(plain(anew), x.now), "!limit")
		},
	} {
		cfg := everything()
		cfg.MaxQueue, cfg.MaxBytes = 4, 8192
		x := newRig(t, cfg)
		x.checkpoint(0)
		syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
		x.Primary(plain(syn), x.now)
		x.Secondary(plain(syn), x.now)
		x.Primary(plain(ackSeg{seq: 100, ack: 2000, win: 50, flags: ackOnly}), x.now)
		x.Secondary(plain(ackSeg{seq: 100, ack: 1500, win: 50, flags: ackOnly}), x.now)
		if st := x.Stats(); st.Dropped > 0 || st.Held != 1 {
			t.Fatalf("%s: too soon: %+v", name, st)
		}
		miss(x)
		if st := x.Stats(); st.Dropped != 1 {
			t.Errorf("%s: it is not: %+v", name, st)
		}
		x.Secondary(plain(ackSeg{seq: 51, ack: 3000, win: 50, flags: ackOnly}), x.now)
		x.mark(1)
		for _, ack := range []uint32{1500, 1600} {
			x.told(name+": between the mark and the receipt", x.Primary(plain(ackSeg{seq: 100, ack: ack, win: 50, flags: ackOnly}), x.now), "")
		}
		x.told(name+": the checkpoint has both", x.received(1), "@100 ack 2000 to 8400, @100 ack 1600 to 8000")
	}
}

// A guest goes on behind what it has said in a segment that is not looked into. Once a
// checkpoint has that, nothing is missing in its stream.
func TestWhatIsNotLookedIntoLeavesNoHoleBehindTheCheckpoint(t *testing.T) {
	wrap := func(a ackSeg, gso byte) compare.Frame {
		h := make([]byte, packet.VNetMergeLen)
		h[1] = gso
		return compare.Frame{Data: append(h, a.frame().Data...), VNetHdr: len(h)}
	}
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	odd, next, later := data(100, "abcd"), data(104, "efgh"), data(108, "ijkl")
	for name, c := range map[string]struct{ both, more bool }{
		"the last thing before a mark":               {},
		"the last thing, and the other guest's":      {both: true},
		"with more behind it":                        {more: true},
		"with more behind it, and the other guest's": {true, true},
	} {
		x := newRig(t, everything())
		x.checkpoint(0)
		x.Primary(wrap(syn, 0), x.now)
		x.told(name+": both accept it", x.Secondary(wrap(syn, 0), x.now), "@99 ack 1000 to 820200")
		x.told(name+": it cannot be compared", x.Primary(wrap(odd, packet.GSOUDP), x.now), "")
		if c.both {
			x.told(name+": nor this one", x.Secondary(wrap(odd, packet.GSOUDP), x.now), "")
		} else {
			x.told(name+": this can", x.Secondary(wrap(odd, 0), x.now), "")
		}
		covered := "abcd@100 ack 1000 to 7400"
		if c.more {
			covered += ", efgh@104 ack 1000 to 7400"
			x.told(name+": what comes after it waits", x.Primary(wrap(next, 0), x.now), "")
			x.told(name+": whatever the other says", x.Secondary(wrap(next, 0), x.now), "")
		}
		x.told(name+": a checkpoint has it", x.checkpoint(1), covered)
		if !c.more {
			x.told(name+": they go on", x.Primary(wrap(next, 0), x.now), "")
			x.told(name+": and agree", x.Secondary(wrap(next, 0), x.now), "efgh@104 ack 1000 to 7400")
		}
		x.told(name+": they go on further", x.Primary(wrap(later, 0), x.now), "")
		x.told(name+": and agree", x.Secondary(wrap(later, 0), x.now), "ijkl@108 ack 1000 to 7400")
	}

	// An acknowledgment leaves no hole.
	x := newRig(t, everything())
	x.checkpoint(0)
	x.Primary(wrap(syn, 0), x.now)
	x.Secondary(wrap(syn, 0), x.now)
	x.told("it waits by itself", x.Primary(wrap(ackSeg{seq: 100, ack: 1000, win: 50, flags: ackOnly}, packet.GSOUDP), x.now), "")
	x.Primary(wrap(odd, 0), x.now)
	x.told("what is behind it does not", x.Secondary(wrap(odd, 0), x.now), "abcd@100 ack 1000 to 7400")

	// Nothing is known of a connection that begins so.
	x = newRig(t, everything())
	x.checkpoint(0)
	x.told("it waits", x.Primary(wrap(odd, packet.GSOUDP), x.now), "")
	if n := x.Stats().Conns; n != 0 {
		t.Errorf("%d connections begin with it", n)
	}
}
