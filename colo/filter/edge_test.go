package filter_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

func loadEdge(t testing.TB, e *filter.Edge, state []byte) error {
	t.Helper()
	reg := registry(t, e)
	if err := reg.Load(qemufile.NewReader(bytes.NewReader(state)), nil); err != nil {
		reg.Rollback()
		return err
	}
	return reg.Commit()
}

// A side has the filters between a guest and the network on one host.
type side struct {
	edge *filter.Edge
	r    *filter.Rewriter
}

func newSide() side {
	e := new(filter.Edge)
	return side{e, filter.NewRewriter(filter.RewriterConfig{Edge: e})}
}

// in is a packet from the network for the guest, and out one that leaves.
func (s side) in(frame []byte) { s.edge.Inbound(frame, 0); s.r.Inbound(frame, 0) }

func (s side) out(frame []byte) { s.r.Outbound(frame, 0); s.edge.Outbound(frame, 0) }

// The first pair is A and B, whose guests chose 1000 and 9000. B takes over, and
// is protected by C, which takes over from it.
func TestConnectionsOutliveASecondFailover(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, edges := range []bool{true, false} { // without, none does
			b := newSide()
			b.r = established(v6)
			b.r.Failover()
			f := segment(true, v6, 501, 1001, packet.ACK, nil, nil)
			if b.in(f); numbers(t, f) != "501/9001" {
				t.Errorf("after the first failover: %s", numbers(t, f))
			}
			if edges {
				if left := b.edge.Adopt(b.r); left != 0 || b.edge.Len() != 1 {
					t.Errorf("%d connections are left, and %d are there", left, b.edge.Len())
				}
			}
			// B is a primary now: its Rewriter has nothing to do.
			b.r = filter.NewRewriter(filter.RewriterConfig{})
			c := newSide()
			c.r.Commit(0)
			if err := loadEdge(t, c.edge, save(t, b.edge)); err != nil {
				t.Fatal(err)
			}
			for name, s := range map[string]side{"B": b, "C": c} {
				in := segment(true, v6, 501, 1001, packet.ACK, nil, []byte("x"))
				s.in(in)
				out := segment(false, v6, 9001, 502, packet.ACK, nil, []byte("y"))
				s.out(out)
				if got := numbers(t, in) + " " + numbers(t, out); (got == "501/9001 1001/502") != edges {
					t.Errorf("%s: %s, with edges %t", name, got, edges)
				}
			}
			if !edges {
				continue
			}
			if a, b := save(t, b.edge), save(t, c.edge); !bytes.Equal(a, b) {
				t.Errorf("what is loaded is saved otherwise:\n%x\n%x", a, b)
			}
			// An error that quotes a segment of it is rewritten on its way in.
			q := quoting(t, segment(false, v6, 1001, 501, packet.ACK, nil, nil), true, v6, 8)
			c.in(q)
			if want := quoting(t, segment(false, v6, 9001, 501, packet.ACK, nil, nil), true, v6, 8); !bytes.Equal(q, want) {
				t.Errorf("an error is %x, want %x", q, want)
			}
		}
	}
}

// A connection that was opened under B and C has B's number 2000 and C's 7000; when
// C is protected by D, it is 5000 ahead, beside the older one, which is 8000 ahead.
func TestConnectionsOfTwoFailoversAreKeptTogether(t *testing.T) {
	c := newSide()
	older := newSide()
	older.edge.Adopt(established(false))
	if err := loadEdge(t, c.edge, save(t, older.edge)); err != nil {
		t.Fatal(err)
	}
	newer := func(toGuest bool, seq, ack uint32, flags uint8) []byte {
		f := segment(toGuest, false, seq, ack, flags, nil, nil)
		at := 34
		if !toGuest {
			at = 36
		}
		binary.BigEndian.PutUint16(f[at:], 40001)
		return withSum(f)
	}
	c.r.Inbound(newer(true, 700, 0, packet.SYN), 0)
	c.r.Outbound(newer(false, 7000, 701, synAck), 0)
	c.r.Inbound(newer(true, 701, 2001, packet.ACK), 0)
	c.r.Failover()
	c.edge.Adopt(c.r)
	d := newSide()
	if err := loadEdge(t, d.edge, save(t, c.edge)); err != nil {
		t.Fatal(err)
	}
	f, g := segment(false, false, 9001, 501, packet.ACK, nil, nil), newer(false, 7001, 701, packet.ACK)
	d.out(f)
	d.out(g)
	if got := numbers(t, f) + " " + numbers(t, g); got != "1001/501 2001/701" || d.edge.Len() != 2 {
		t.Errorf("%s, %d connections", got, d.edge.Len())
	}
}

func TestAnEdgeForgetsAConnectionWhenTheGuestOpensAnother(t *testing.T) {
	for name, c := range map[string]struct {
		say     func(s side)
		forgets bool
	}{
		"a stranger's SYN": {func(s side) { s.in(segment(true, false, 800, 0, packet.SYN, nil, nil)) }, false},
		"a stranger's RST": {func(s side) { s.in(segment(true, false, 501, 0, packet.RST, nil, nil)) }, false},
		"the guest's SYN|ACK, which leaves": {func(s side) {
			s.in(segment(true, false, 800, 0, packet.SYN, nil, nil))
			s.edge.Outbound(segment(false, false, 77000, 801, synAck, nil, nil), 0)
		}, true},
		"the guest's SYN, which leaves": {func(s side) {
			s.edge.Outbound(segment(false, false, 77000, 0, packet.SYN, nil, nil), 0)
		}, true},
		"the guest's RST": {func(s side) { s.out(segment(false, false, 9001, 501, packet.RST|packet.ACK, nil, nil)) }, true},
		"a SYN|ACK of a secondary's guest, which only the primary gets": {func(s side) {
			s.r.Inbound(segment(true, false, 800, 0, packet.SYN, nil, nil), 0)
			s.r.Outbound(segment(false, false, 77000, 801, synAck, nil, nil), 0)
		}, true},
		"its SYN|ACK again": {func(s side) { s.edge.Outbound(segment(false, false, 9000, 501, synAck, nil, nil), 0) }, false},
		"its SYN|ACK again, of a secondary's guest": {func(s side) {
			s.r.Outbound(segment(false, false, 9000, 501, synAck, nil, nil), 0)
		}, false},
		"its number again, for another client": {func(s side) { s.edge.Outbound(segment(false, false, 9000, 801, synAck, nil, nil), 0) }, true},
	} {
		for _, loaded := range []bool{false, true} {
			s := newSide()
			s.edge.Adopt(established(false))
			if loaded {
				state := save(t, s.edge)
				s = newSide()
				if err := loadEdge(t, s.edge, state); err != nil {
					t.Fatal(err)
				}
			}
			c.say(s)
			if got := s.edge.Len() == 0; got != c.forgets {
				t.Errorf("%s, by a checkpoint=%t: forgotten: %t", name, loaded, got)
			}
		}
	}
}

func TestAnEdgeTranslatesTimestampsAndOffloadedChecksums(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(segment(true, false, 500, 0, packet.SYN, stamps(t, 70, 0), nil), 0)
	r.Outbound(segment(false, false, 9000, 501, synAck, stamps(t, 100007, 70), nil), 0)
	r.Inbound(segment(true, false, 501, 1001, packet.ACK, stamps(t, 71, 100000), nil), 0)
	var e filter.Edge
	e.Adopt(r)
	f := segment(false, false, 9001, 501, packet.ACK, stamps(t, 100017, 71), nil)
	if e.Outbound(f, 0); numbers(t, f)+" "+times(f) != "1001/501 100010/71" {
		t.Errorf("%s %s", numbers(t, f), times(f))
	}
	for _, vnet := range []int{10, 12, 20, 24} {
		f = offloaded(segment(true, false, 501, 1001, packet.ACK, stamps(t, 71, 100010), make([]byte, 40000)), vnet)
		sum := bytes.Clone(f[vnet+34+16 : vnet+34+18])
		if e.Inbound(f, vnet); !bytes.Equal(f[vnet+34+16:vnet+34+18], sum) || times(f[vnet:]) != "71/100017" {
			t.Errorf("header of %d bytes: %x", vnet, f[:vnet+66])
		}
	}
	if e.Rewritten() != 5 {
		t.Errorf("%d packets", e.Rewritten())
	}
}

// The guest's timestamps are 7 ahead of those that the client knows. The client echoes one that the
// other guest of the pair has sent, and this one has not.
func TestAnEdgeEchoesNoTimeThatTheGuestHasNotSent(t *testing.T) {
	for _, loaded := range []bool{false, true} {
		r := filter.NewRewriter(filter.RewriterConfig{})
		r.Inbound(segment(true, false, 500, 0, packet.SYN, stamps(t, 70, 0), nil), 0)
		r.Outbound(segment(false, false, 9000, 501, synAck, stamps(t, 1007, 70), nil), 0)
		r.Inbound(segment(true, false, 501, 1001, packet.ACK, stamps(t, 71, 1000), nil), 0)
		e := new(filter.Edge)
		e.Adopt(r)
		if loaded {
			state := save(t, e)
			e = new(filter.Edge)
			if err := loadEdge(t, e, state); err != nil {
				t.Fatal(err)
			}
		}
		e.Outbound(segment(false, false, 9001, 501, packet.ACK, stamps(t, 1057, 71), []byte("x")), 0)
		for echo, want := range map[uint32]uint32{1040: 1047, 1050: 1057, 1060: 1057} {
			f := segment(true, false, 501, 1001, packet.ACK, stamps(t, 72, echo), nil)
			if !e.Inbound(f, 0) || times(f) != fmt.Sprintf("72/%d", want) || numbers(t, f) != "501/9001" {
				t.Errorf("by a checkpoint=%t: %d is echoed as %s, want %d", loaded, echo, times(f), want)
			}
		}
	}
}

// lines is a network of two slices.
type lines struct{ in, out [][]byte }

func (l *lines) ReadPacket() ([]byte, error) {
	if len(l.in) == 0 {
		return nil, errors.New("at its end")
	}
	p := l.in[0]
	l.in = l.in[1:]
	return p, nil
}

func (l *lines) WritePacket(p []byte) error { l.out = append(l.out, bytes.Clone(p)); return nil }

func TestANetworkBehindAnEdgeIsTranslated(t *testing.T) {
	var e filter.Edge
	in, out := segment(true, false, 501, 1001, packet.ACK, nil, nil), segment(false, false, 9001, 501, packet.ACK, nil, nil)
	for _, want := range []string{"501/1001 9001/501", "501/9001 1001/501"} {
		l := &lines{in: [][]byte{bytes.Clone(in)}}
		n := e.Network(l, 0)
		p, err := n.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		q := bytes.Clone(out)
		if err := n.WritePacket(q); err != nil || !bytes.Equal(q, out) {
			t.Fatalf("%v, or the caller's packet was changed", err)
		}
		if got := numbers(t, p) + " " + numbers(t, l.out[0]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if _, err := n.ReadPacket(); err == nil {
			t.Error("no end")
		}
		if n.Close() != nil {
			t.Error("what cannot be closed needs no closing")
		}
		e.Adopt(established(false))
	}
}

func TestAnEdgeRefusesWhatIsNoTable(t *testing.T) {
	good := new(filter.Edge)
	good.Adopt(established(false))
	good.Adopt(established(true))
	state := save(t, good)
	at := bytes.Index(state, []byte{4, 0, 0, 0, 0, 0, 0, 0, 0, 80}) // the first record
	if at < 0 {
		t.Fatalf("%x", state)
	}
	const record = 62
	for name, change := range map[string]func(b []byte){
		"of no known kind":        func(b []byte) { b[at] = 5 },
		"bytes behind an address": func(b []byte) { b[at+12+4] = 1 },
		"no translation":          func(b []byte) { clear(b[at+44 : at+52]) },
		"no such window":          func(b []byte) { b[at+52] = 15 },
		"no such answer":          func(b []byte) { b[at+53] = 2 },
		"numbers of no answer":    func(b []byte) { b[at+53] = 0 },
		"out of order":            func(b []byte) { b[at], b[at+record] = 6, 4; clear(b[at+record+12 : at+record+44]) },
		"twice":                   func(b []byte) { copy(b[at+record:], b[at:at+record]) },
	} {
		b := bytes.Clone(state)
		change(b)
		e := new(filter.Edge)
		e.Adopt(established(false))
		var fe *filter.Error
		if err := loadEdge(t, e, b); !errors.Is(err, filter.ErrEdge) || !errors.As(err, &fe) || e.Len() != 1 {
			t.Errorf("%s: %v, and %d connections", name, err, e.Len())
		}
	}
	b := bytes.Clone(state)
	binary.BigEndian.PutUint32(b[at-4:], filter.MaxEdge+1)
	if err := loadEdge(t, new(filter.Edge), b); !errors.Is(err, vmstate.ErrBounds) {
		t.Errorf("too many: %v", err)
	}
	for n := range len(state) - 1 {
		if loadEdge(t, new(filter.Edge), state[:n]) == nil {
			t.Errorf("cut at %d: accepted", n)
		}
	}
}

func TestAnEdgeAllocatesNothing(t *testing.T) {
	e := new(filter.Edge)
	e.Adopt(established(false))
	n := e.Network(discardAll{segment(true, false, 501, 1001, packet.ACK, nil, make([]byte, 1400))}, 0)
	out := segment(false, false, 9001, 501, packet.ACK, nil, make([]byte, 1400))
	if a := testing.AllocsPerRun(100, func() {
		if _, err := n.ReadPacket(); err != nil {
			t.Fatal(err)
		}
		if err := n.WritePacket(out); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

type discardAll struct{ p []byte }

func (d discardAll) ReadPacket() ([]byte, error) { return d.p, nil }
func (d discardAll) WritePacket([]byte) error    { return nil }

// What is loaded as a table is saved as the same bytes, and anything else is
// refused and changes nothing.
func FuzzEdge(f *testing.F) {
	e := new(filter.Edge)
	f.Add(save(f, e))
	e.Adopt(established(false))
	e.Adopt(established(true))
	f.Add(save(f, e))
	f.Fuzz(func(t *testing.T, state []byte) {
		e := new(filter.Edge)
		if loadEdge(t, e, state) != nil {
			if e.Len() != 0 {
				t.Fatal("half of a table was loaded")
			}
			return
		}
		again := new(filter.Edge)
		if err := loadEdge(t, again, save(t, e)); err != nil || again.Len() != e.Len() {
			t.Fatalf("%d connections, then %d: %v", e.Len(), again.Len(), err)
		}
		if !bytes.Equal(save(t, e), save(t, again)) {
			t.Fatal("saved otherwise")
		}
	})
}
