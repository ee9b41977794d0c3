package filter_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A session may end without a failover, with a mark that nobody has received. The first receipt of the next one
// covers what both held.
func TestTheFirstReceiptOfASessionCoversWhatTheOneBeforeHeld(t *testing.T) {
	for _, marks := range []uint64{1, 3} {
		b := filter.NewBuffer(filter.BufferConfig{})
		for e := range marks {
			if err := b.Mark(e); err != nil {
				t.Fatal(err)
			}
			b.WritePacket([]byte{byte('a' + e)})
		}
		if err := b.Mark(0); err != nil {
			t.Fatal(err)
		}
		if err := b.Received(0); err != nil {
			t.Fatal(err)
		}
		if st := b.Stats(); st.Held != 0 || st.Queued != marks {
			t.Errorf("%d marks: %d packets are held and %d may leave", marks, st.Held, st.Queued)
		}
		if err := b.Received(marks - 1); !errors.Is(err, filter.ErrEpoch) {
			t.Errorf("%d marks: a receipt of the session before: %v", marks, err)
		}
	}
}

func TestNothingIsLoadedThatWasNotMarked(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	b.Mark(0)
	b.Received(0)
	if err := b.Loaded(0); err != nil {
		t.Error(err)
	}
	if err := b.Loaded(1); !errors.Is(err, filter.ErrEpoch) {
		t.Errorf("the next: %v", err)
	}
}

// What a guest has inherited and what it sends share one limit, beside a network that takes nothing.
func TestInheritedPacketsCountForTheLimit(t *testing.T) {
	p, s := filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{Limit: 1})
	q := make([]byte, filter.MaxFrame)
	for range 3 {
		p.WritePacket(q)
	}
	p.Mark(0)
	load(t, s, save(t, p))
	s.Commit(0)
	s.Failover()
	if err := s.WritePacket(q); err != nil {
		t.Errorf("the fourth of four: %v", err)
	}
	if err := s.WritePacket(q); err != filter.ErrFull {
		t.Errorf("the fifth: %v", err)
	}
}

func TestAnOutboxTakesNothingFromItsFailoverToTheNextMark(t *testing.T) {
	o := filter.NewOutbox(0)
	f := filter.Frame{Data: []byte("a")}
	o.Failover()
	if err := o.WriteFrame(f); err != nil || o.Pending() != 0 || o.LostFrames() != 0 {
		t.Errorf("%v, %d wait, %d are lost", err, o.Pending(), o.LostFrames())
	}
	o.Mark(0)
	if o.WriteFrame(f); o.Pending() != 2 {
		t.Errorf("behind the mark %d wait", o.Pending())
	}
}

// After a failover the guest's number is the only one, whoever opens the connection.
func TestNoConnectionThatOpensAfterAFailoverIsFollowed(t *testing.T) {
	for _, byGuest := range []bool{false, true} {
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Failover()
		if byGuest {
			r.Outbound(segment(false, false, 9000, 0, packet.SYN, nil, nil), 0)
		} else {
			r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, nil), 0)
			r.Outbound(segment(false, false, 9000, 501, synAck, nil, nil), 0)
		}
		if n := r.Stats().Conns; n != 0 {
			t.Errorf("by the guest=%t: %d are followed", byGuest, n)
		}
	}
}

// Anybody may answer a guest's SYN, as often as it likes.
func TestFourOfCountlessAnswersToASYNAreRemembered(t *testing.T) {
	answered := func(nth uint32) bool {
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Outbound(segment(false, false, 9000, 0, packet.SYN, nil, nil), 0)
		for n := range uint32(1000) {
			r.Inbound(segment(true, false, 100000*n, 1001+n, synAck, nil, nil), 0)
		}
		r.Outbound(segment(false, false, 9001, 100000*nth+1, packet.ACK, nil, nil), 0)
		f := segment(false, false, 9001, 100000*nth+1, packet.ACK, nil, []byte("data"))
		r.Outbound(f, 0)
		var p packet.Packet
		p.Parse(f)
		return p.TCP().Seq() == 1001+nth
	}
	for nth, want := range map[uint32]bool{0: true, 3: true, 4: false, 999: false} {
		if got := answered(nth); got != want {
			t.Errorf("answer %d: the guest takes it, and is translated: %t", nth, got)
		}
	}
}

// The guest drops a RST that was damaged on its way, and goes on.
func TestADamagedRSTEndsNoConnectionOfAnEdge(t *testing.T) {
	for _, damaged := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			e := new(filter.Edge)
			e.Adopt(established(false))
			f := segment(true, false, 501, 1001, packet.RST|packet.ACK, nil, nil)
			if damaged {
				f[34+packet.TCPChecksumAt] ^= 4
			}
			e.Inbound(f, 0)
			time.Sleep(5 * time.Minute)
			save(t, e)
			if got := e.Len() == 1; got != damaged {
				t.Errorf("damaged=%t: it is translated: %t", damaged, got)
			}
		})
	}
}

// A Rewriter without an Edge tells it of nothing.
func TestAConnectionThatTheGuestHasOpenedAnewReplacesTheOneOfTheEdge(t *testing.T) {
	e := new(filter.Edge)
	e.Adopt(established(false))
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(segment(true, false, 800, 0, packet.SYN, nil, nil), 0)
	r.Outbound(segment(false, false, 77000, 801, synAck, nil, nil), 0)
	r.Inbound(segment(true, false, 801, 77001, packet.ACK, nil, nil), 0)
	if left := e.Adopt(r); left != 0 || e.Len() != 0 {
		t.Errorf("%d are left, and %d are translated, of one that needs no translation", left, e.Len())
	}
}

func TestAnEdgeSaysHowManyConnectionsItHasNoRoomFor(t *testing.T) {
	if testing.Short() {
		t.Skip("it opens seventy thousand connections")
	}
	const many = filter.MaxEdge + 100
	r := filter.NewRewriter(filter.RewriterConfig{MaxConns: many})
	say := func(n int, toGuest bool, seq, ack uint32, flags uint8) {
		f := segment(toGuest, false, seq, ack, flags, nil, nil)
		client := f[26:] // its address
		if !toGuest {
			client = f[30:]
		}
		client[0], client[1], client[2] = byte(n>>16), byte(n>>8), byte(n)
		f = withSum(f)
		if toGuest {
			r.Inbound(f, 0)
		} else {
			r.Outbound(f, 0)
		}
	}
	for n := range many {
		say(n, true, 500, 0, packet.SYN)
		say(n, false, 9000, 501, synAck)
		say(n, true, 501, 1001, packet.ACK)
	}
	e := new(filter.Edge)
	if left := e.Adopt(r); left != 100 || e.Len() != filter.MaxEdge {
		t.Errorf("%d are left, %d are translated", left, e.Len())
	}
}
