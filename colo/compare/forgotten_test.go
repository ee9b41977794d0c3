package compare_test

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// crowdedRig returns an engine with room for one connection, which waits.
func crowdedRig(t *testing.T) *rig {
	cfg := lowering()
	cfg.MaxConns = 1
	x := newRig(t, cfg)
	x.checkpoint(0)
	return x
}

// A packet that finds no room may begin another connection on its addresses. What the other guest says on the
// one before counts for none then, also if there is room again.
func TestWordsOfAConnectionDoNotCountForOneThatBeganWithoutRoom(t *testing.T) {
	x := crowdedRig(t)
	x.Primary(udp("ping"), x.now)
	x.told("there is no room", x.Primary(ackSeg{seq: 9000, ack: 2001, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}.frame(), x.now), "!limit")
	if r := x.Secondary(udp("ping"), x.now); len(r.Release) != 1 {
		t.Fatal("the datagram has not left")
	}
	x.Secondary(bareAt(5000, 2500, 50).frame(), x.now) // of the connection before
	x.told("it acknowledges what the secondary's guest has not got", x.Primary(bareAt(9001, 2400, 50).frame(), x.now), "")
	r := x.checkpoint(1)
	if len(r.Release) != 2 {
		t.Errorf("with the checkpoint %d leave", len(r.Release))
	}
}

// A connection that the secondary's guest has begun, and the primary's has not, is not forgotten for another
// one: what that guest says after it would count for the connection before.
func TestAConnectionThatOneGuestHasBegunIsNotForgotten(t *testing.T) {
	x := crowdedRig(t)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Primary(syn.frame(), x.now)
	x.Secondary(syn.frame(), x.now)
	syn.seq, syn.ack = 70000, 2001
	x.Secondary(syn.frame(), x.now)
	x.now = x.now.Add(time.Second)
	x.Primary(udp("ping"), x.now)
	x.Secondary(udp("ping"), x.now)
	x.Secondary(bareAt(70001, 2500, 50).frame(), x.now)
	x.told("the primary's guest goes on with the one before", x.Primary(bareAt(100, 1200, 50).frame(), x.now), "")
}

// Whatever waits for a receipt belongs to its connection, which is not forgotten meanwhile.
func TestAConnectionOfWhichSomethingWaitsForAReceiptIsNotForgotten(t *testing.T) {
	x := crowdedRig(t)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Primary(syn.frame(), x.now)
	x.Secondary(syn.frame(), x.now)
	x.Primary(data(100, "abcd").frame(), x.now)
	x.mark(1)
	if r := x.Primary(udp("ping"), x.now); r.Reason != compare.ReasonLimit {
		t.Errorf("there is room for another one: %v", r.Reason)
	}
	x.told("", x.received(1), "abcd@100 ack 1000 to 7400")
}

// A guest may repeat its SYN with other options, at a mark or not.
func TestASYNLeavesWithTheOptionsThatASurvivorHasAgreedUpon(t *testing.T) {
	x := newRig(t, lowering())
	x.checkpoint(0)
	syn := ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}
	x.Primary(syn.frame(), x.now)
	x.Secondary(syn.frame(), x.now)
	syn.opts = wireMSS + wireSACKOK
	x.Secondary(syn.frame(), x.now)
	x.mark(1)
	if r := x.Primary(syn.frame(), x.now); len(r.Release) != 0 {
		t.Error("options leave that the guest of the checkpoint has not agreed upon")
	}
}

// Without markers the secondary's packets count from the load of the last checkpoint on, and not from that of one
// before it.
func TestALoadThatIsToldLateHasNobodyHeard(t *testing.T) {
	x := newRig(t, compare.Config{})
	for epoch := range uint64(2) {
		x.mark(epoch)
		x.received(epoch)
	}
	if err := x.Loaded(0); err != nil || !x.Deaf() {
		t.Errorf("%v, deaf: %t", err, x.Deaf())
	}
	if err := x.Loaded(1); err != nil || x.Deaf() {
		t.Errorf("%v, deaf: %t", err, x.Deaf())
	}

	x = newRig(t, compare.Config{Marks: true})
	x.mark(0)
	x.received(0)
	if err := x.Loaded(0); err != nil || !x.Deaf() {
		t.Errorf("with markers: %v, deaf: %t", err, x.Deaf())
	}
}

// A FIN that a checkpoint covers is at its place, and nowhere else.
func TestAFINThatACheckpointCoversIsNoOtherFIN(t *testing.T) {
	cfg := lowering()
	cfg.ReleaseRetransmits = false
	x, _, _ := openedWith(t, cfg, nil)
	fin := ackSeg{seq: 100, ack: 1000, win: 50, flags: packet.FIN | packet.ACK, data: "abcd"}
	x.Primary(fin.frame(), x.now)
	x.Primary(data(104, "more").frame(), x.now) // which no guest does that keeps to the protocol
	x.checkpoint(1)
	fin.data = ""
	x.Primary(fin.frame(), x.now)
	if r := x.Secondary(bareAt(105, 1000, 50).frame(), x.now); len(r.Release) != 0 {
		t.Error("a FIN leaves that no guest but this one has given")
	}
}
