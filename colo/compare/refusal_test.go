package compare_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// An opener is a guest with as much TCP as it takes to open one connection and to say "hello".
type opener struct {
	isn            uint32
	refused, ready bool
}

// get handles a segment to the guest and returns what the guest sends.
func (g *opener) get(f []byte) []seg {
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	taken := h.Flags()&packet.ACK != 0 && h.Ack() == g.isn+1
	switch {
	case h.Flags()&packet.RST != 0:
		g.refused = g.refused || taken && !g.ready
		return nil
	case g.refused: // there is no such connection any more
		return []seg{{port: 9, seq: h.Ack(), flags: packet.RST}}
	case taken && h.Flags()&packet.SYN != 0:
		g.ready = true
		return []seg{{port: 9, seq: g.isn + 1, ack: h.Seq() + 1, flags: push, data: "hello"}}
	}
	return nil
}

// A stranger who does not know the numbers of a connection that the guest opens refuses it all the
// same, before the server answers. Only the secondary's guest takes that, whatever is acknowledged, since the
// rewriter cannot know yet what the primary's guest has sent. Nothing of the connection leaves then
// before the checkpoint that is asked for, and that has all of it.
func TestARefusalThatIsForgedBlindlyCostsACheckpointAndNothingElse(t *testing.T) {
	inbound := func(seq, ack uint32, flags uint8) []byte {
		f := seg{port: 9, seq: seq, ack: ack, flags: flags}.frame().Data
		copy(f[26:34], []byte{10, 0, 0, 2, 10, 0, 0, 1})
		copy(f[34:38], []byte{0, 9, 0, 80})
		var p packet.Packet
		p.Parse(f)
		p.TCP().SetChecksum(p.TCPChecksum())
		return f
	}
	for _, acknowledged := range []uint32{0, 1, 1002, 9000, 0xffffffff, 1001} {
		for _, silent := range []bool{false, true} { // the guest answers what it knows nothing of, or its own firewall drops that
			t.Run(fmt.Sprintf("%d, silent=%t", acknowledged, silent), func(t *testing.T) {
				x := newRig(t, compare.Config{Timeout: time.Second})
				r := filter.NewRewriter(filter.RewriterConfig{})
				primary, secondary := &opener{isn: 1000}, &opener{isn: 9000}
				outbound := func(s seg) compare.Result {
					f := s.frame()
					if early := r.Outbound(f.Data, 0); early != nil {
						t.Fatal("a segment to the guest was held")
					}
					return x.Secondary(f, x.now)
				}
				var left string
				saw := func(res compare.Result) bool {
					for _, f := range res.Release {
						left += " " + show(compare.Result{Release: []compare.Frame{f}})
					}
					return res.Diverged
				}
				saw(x.p(seg{port: 9, seq: 1000, flags: packet.SYN}))
				saw(outbound(seg{port: 9, seq: 9000, flags: packet.SYN}))
				if left != " SYN" {
					t.Fatalf("of the two SYNs %q leaves", left)
				}
				both := func(seq, ack uint32, flags uint8) (asked bool) {
					f := inbound(seq, ack, flags)
					for _, s := range primary.get(f) {
						if !silent || !primary.refused {
							asked = saw(x.p(s)) || asked
						}
					}
					if !r.Inbound(f, 0) {
						t.Fatal("a segment to the guest was held")
					}
					for _, s := range secondary.get(f) {
						if !silent || !secondary.refused {
							asked = saw(outbound(s)) || asked
						}
					}
					return asked
				}
				asked := both(0, acknowledged, packet.RST|packet.ACK)
				blind := acknowledged != 1001
				if primary.refused == blind || !secondary.refused {
					t.Fatalf("refused: the primary's guest %t, the secondary's %t", primary.refused, secondary.refused)
				}
				asked = both(500, 1001, packet.SYN|packet.ACK) || asked
				x.now = x.now.Add(2 * time.Second)
				asked = saw(x.Tick(x.now)) || asked
				if !blind { // the server's own: both guests agree that there is no connection
					if want := map[bool]string{false: " SYN RST", true: " SYN"}[silent]; asked || left != want {
						t.Errorf("both were refused, and a checkpoint is asked for: %t; %q leaves", asked, left)
					}
					return
				}
				if !asked || left != " SYN" {
					t.Errorf("a checkpoint is asked for: %t; before that %q leaves", asked, left)
				}
				x.mark(0)
				saw(x.received(0))
				if left != " SYN hello" {
					t.Errorf("with the checkpoint %q leaves", left)
				}
			})
		}
	}
}
