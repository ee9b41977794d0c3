package compare_test

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// An echo is a guest with as much TCP as it takes to echo one connection's
// bytes: deterministic, but for its initial sequence number and how it cuts
// what it sends.
type echo struct {
	isn        uint32
	next, want uint32 // what it sends and expects next
	unacked    string // for retransmission
	cut        func(n int) int
}

// get handles a packet of the client and returns what the guest sends.
func (g *echo) get(f []byte) (out []seg) {
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	if h.Flags()&packet.SYN != 0 {
		g.next, g.want = g.isn+1, h.Seq()+1
		return []seg{g.say(packet.SYN|packet.ACK, g.isn, "")}
	}
	if n := int(int32(h.Ack() - (g.next - uint32(len(g.unacked))))); n > 0 && n <= len(g.unacked) {
		g.unacked = g.unacked[n:]
	}
	data := string(h.Payload())
	if h.Seq() != g.want {
		data = ""
	}
	g.want += uint32(len(data))
	if h.Flags()&packet.FIN != 0 && h.Seq()+uint32(len(h.Payload())) == g.want {
		g.want++
		out = append(out, g.say(packet.FIN|packet.ACK, g.next, ""))
		g.next++
		return out
	}
	g.unacked += data
	for len(data) > 0 {
		n := g.cut(len(data))
		out = append(out, g.say(push, g.next, data[:n]))
		g.next += uint32(n)
		data = data[n:]
	}
	return out
}

func (g *echo) again() seg { return g.say(push, g.next-uint32(len(g.unacked)), g.unacked) }

func (g *echo) say(flags uint8, seq uint32, data string) seg {
	return seg{port: 40000, seq: seq, ack: g.want, flags: flags, data: data}
}

// toGuest builds a packet of the client.
func toGuest(seq, ack uint32, flags uint8, data string) []byte {
	f := seg{port: 40000, seq: seq, ack: ack, flags: flags, data: data}.frame().Data
	binary.BigEndian.PutUint32(f[26:], 0x0a000002) // the other way round
	binary.BigEndian.PutUint32(f[30:], 0x0a000001)
	binary.BigEndian.PutUint16(f[34:], 40000)
	binary.BigEndian.PutUint16(f[36:], 80)
	return f
}

// A client talks to a primary whose every packet is compared with that of a
// secondary with other sequence numbers. Then the primary is gone, in the
// middle of the connection, and the client does not notice.
func TestConnectionSurvivesTheDeathOfTheHostThatItWasOpenedOn(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		cut := func(n int) int { return 1 + rnd.IntN(n) }
		p := &echo{isn: rnd.Uint32(), cut: cut}
		s := &echo{isn: rnd.Uint32(), cut: cut}
		e := compare.NewEngine(compare.Config{PatientAcks: true})
		r := filter.NewRewriter(filter.RewriterConfig{})
		now := time.Unix(1, 0)

		// The client.
		seq, ack := rnd.Uint32(), uint32(0)
		var sent, got strings.Builder
		receive := func(f []byte) {
			var v packet.Packet
			v.Parse(f)
			h := v.TCP()
			if h.Flags()&packet.SYN != 0 {
				ack = h.Seq() + 1
				return
			}
			if skip := int32(ack - h.Seq()); skip >= 0 && int(skip) <= len(h.Payload()) {
				got.Write(h.Payload()[skip:])
				ack += uint32(len(h.Payload())) - uint32(skip)
			}
		}
		dead := false
		check := func(res compare.Result) {
			if res.Diverged {
				t.Fatalf("seed %d: diverged: %v", seed, res.Reason)
			}
			for _, f := range res.Release {
				receive(f.Data)
			}
		}
		fromSecondary := func(x seg) {
			f := x.frame()
			if early := r.Outbound(f.Data, 0); early != nil {
				t.Fatalf("seed %d: a packet had been too early", seed)
			}
			if dead {
				receive(f.Data)
				return
			}
			check(e.Secondary(f, now))
		}
		send := func(flags uint8, data string) {
			f := toGuest(seq, ack, flags, data)
			seq += uint32(len(data))
			if flags&packet.SYN != 0 {
				seq++
			}
			sent.WriteString(data)
			var ps []seg
			if !dead {
				ps = p.get(f)
			}
			if !r.Inbound(f, 0) {
				t.Fatalf("seed %d: a packet is too early", seed)
			}
			ss := s.get(f)
			for len(ps)+len(ss) > 0 { // their answers come as they may
				if len(ss) == 0 || len(ps) > 0 && rnd.IntN(2) == 0 {
					check(e.Primary(ps[0].frame(), now))
					ps = ps[1:]
				} else {
					fromSecondary(ss[0])
					ss = ss[1:]
				}
			}
		}
		send(packet.SYN, "")
		send(packet.ACK, "")
		words := 5 + rnd.IntN(10)
		dies := rnd.IntN(words)
		for i := range words {
			if i == dies {
				dead = true
				r.Failover()
				if s.unacked != "" {
					fromSecondary(s.again())
				}
			}
			send(push, strings.Repeat(string(rune('a'+i)), 1+rnd.IntN(100)))
			send(packet.ACK, "")
		}
		if got.String() != sent.String() {
			t.Fatalf("seed %d: sent %q, got back %q", seed, sent.String(), got.String())
		}
	}
}
