package filter_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// begunFast returns a Rewriter whose guest has taken data with a SYN. It has answered it with the number
// 9000, the client's own is 500, and its data ends at 505.
func begunFast(t *testing.T, cfg filter.RewriterConfig) *filter.Rewriter {
	t.Helper()
	r := filter.NewRewriter(cfg)
	r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, []byte("ask!")), 0)
	if f := segment(false, false, 9000, 505, synAck, nil, nil); r.Outbound(f, 0) != nil || r.Kept() || numbers(t, f) != "9000/505" {
		t.Fatal("the SYN|ACK does not pass")
	}
	return r
}

// drained returns the numbers and data of what Late has.
func drained(t *testing.T, r *filter.Rewriter) (all []string) {
	t.Helper()
	for f := r.Late(); f != nil; f = r.Late() {
		var p packet.Packet
		p.Parse(f)
		all = append(all, fmt.Sprintf("%s %s", numbers(t, f), p.TCP().Payload()))
	}
	return all
}

func TestWhatAGuestSaysBeforeItsSYNIsAnsweredIsKeptUntilThen(t *testing.T) {
	for name, c := range map[string]struct {
		between func(r *filter.Rewriter)
		seq     uint32 // of the client's answer
		want    []string
	}{
		"the client answers":           {func(*filter.Rewriter) {}, 505, []string{"1001/505 an", "1003/505 swer", "1007/505 "}},
		"a SYN|ACK is repeated":        {func(r *filter.Rewriter) { r.Outbound(segment(false, false, 9000, 505, synAck, nil, nil), 0) }, 505, []string{"1001/505 an", "1003/505 swer", "1007/505 "}},
		"this host goes on alone":      {func(r *filter.Rewriter) { r.Failover() }, 505, []string{"1001/505 an", "1003/505 swer", "1007/505 "}},
		"a checkpoint comes between":   {func(r *filter.Rewriter) { r.Commit(1) }, 505, nil},
		"it is of an older connection": {func(*filter.Rewriter) {}, 1 << 30, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := begunFast(t, filter.RewriterConfig{KeepLate: true})
			for _, f := range [][]byte{
				segment(false, false, 9001, 505, packet.ACK, nil, []byte("an")),
				segment(false, false, 9003, 505, packet.ACK, nil, []byte("swer")),
				segment(false, false, 9007, 505, packet.ACK|packet.FIN, nil, nil),
			} {
				if r.Outbound(f, 0) != nil || !r.Kept() {
					t.Fatal("what cannot be translated leaves")
				}
			}
			if got := drained(t, r); got != nil {
				t.Errorf("%q leaves before the answer", got)
			}
			c.between(r)
			r.Inbound(segment(true, false, c.seq, 1001, packet.ACK, nil, nil), 0)
			if got := drained(t, r); !slices.Equal(got, c.want) {
				t.Errorf("%q leaves, want %q", got, c.want)
			}
			if c.want == nil {
				return
			}
			f := segment(false, false, 9008, 505, packet.ACK, nil, nil)
			if r.Outbound(f, 0); r.Kept() || numbers(t, f) != "1008/505" {
				t.Errorf("then %s, kept: %t", numbers(t, f), r.Kept())
			}
		})
	}
}

func TestOnlyAGuestThatHasTakenDataWithASYNSpeaksTooEarly(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{KeepLate: true})
	r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, []byte("ask!")), 0)
	r.Outbound(segment(false, false, 9000, 501, synAck, nil, nil), 0) // it has refused the data
	if r.Outbound(segment(false, false, 9001, 501, packet.ACK, nil, []byte("an")), 0); r.Kept() {
		t.Error("a guest that has taken no data is kept from speaking")
	}
	r = begunFast(t, filter.RewriterConfig{})
	if r.Outbound(segment(false, false, 9001, 505, packet.ACK, nil, []byte("an")), 0); r.Kept() {
		t.Error("a host that has not asked for it loses a packet")
	}
	r = begunFast(t, filter.RewriterConfig{KeepLate: true})
	if r.Outbound(segment(false, false, 9001, 505, packet.RST, nil, nil), 0); r.Kept() {
		t.Error("a RST is kept")
	}
}

// A guest may say as much as it likes before it is answered. What is kept of one connection and of all is
// bounded; the rest is dropped, and the guest sends it again.
func TestWhatIsKeptOfGuestsThatSpeakEarlyIsBounded(t *testing.T) {
	r := begunFast(t, filter.RewriterConfig{KeepLate: true})
	for i := range 100 {
		r.Outbound(segment(false, false, 9001+1000*uint32(i), 505, packet.ACK, nil, make([]byte, 1000)), 0)
		if !r.Kept() {
			t.Fatal("what cannot be translated leaves")
		}
	}
	s := r.Stats()
	if s.Held < 14 || s.Held > 32 || s.Held+s.Dropped != 100 {
		t.Errorf("%+v", s)
	}
	r.Inbound(segment(true, false, 505, 1001, packet.ACK, nil, nil), 0)
	if got := drained(t, r); uint64(len(got)) != s.Held {
		t.Errorf("%d of %d leave", len(got), s.Held)
	}
}

// A Rewriter in a Chain has the packets that it has kept pass the filters behind it.
func TestAChainSendsWhatItsRewriterHasKept(t *testing.T) {
	var left []string
	c := &filter.Chain{Deliver: func(d filter.Direction, f filter.Frame) error {
		if d == filter.FromGuest {
			left = append(left, numbers(t, f.Data))
		}
		return nil
	}}
	if err := c.Insert(filter.Entry{ID: "rew0", Filter: filter.NewRewriter(filter.RewriterConfig{KeepLate: true})}, filter.Position{}); err != nil {
		t.Fatal(err)
	}
	c.Send(filter.ToGuest, filter.Frame{Data: segment(true, false, 500, 0, packet.SYN, nil, []byte("ask!"))})
	c.Send(filter.FromGuest, filter.Frame{Data: segment(false, false, 9000, 505, synAck, nil, nil)})
	c.Send(filter.FromGuest, filter.Frame{Data: segment(false, false, 9001, 505, packet.ACK, nil, []byte("an"))})
	if want := []string{"9000/505"}; !slices.Equal(left, want) {
		t.Errorf("%q left before the answer, want %q", left, want)
	}
	c.Send(filter.ToGuest, filter.Frame{Data: segment(true, false, 505, 1001, packet.ACK, nil, nil)})
	if want := []string{"9000/505", "1001/505"}; !slices.Equal(left, want) {
		t.Errorf("%q left, want %q", left, want)
	}
}
