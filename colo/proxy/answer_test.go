package proxy_test

import (
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
)

// Both guests call the same host. Somebody else, who knows neither guest's number, answers first.
// The primary's guest does not take that; the secondary's must not either, or a stranger would
// have a connection with it once it has taken over.
func TestAnAnswerThatThePrimarysGuestDoesNotTakeIsKeptFromTheSecondarys(t *testing.T) {
	const pISN, sISN, peer, synAck, refusal = 1000, 9000, 500, packet.SYN | packet.ACK, packet.RST | packet.ACK
	for name, c := range map[string]struct {
		first    []byte
		mirrored bool
		other    bool   // the secondary's guest calls too, before the answer comes
		data     string // of the SYN
	}{
		"a SYN|ACK of another number":              {segment(true, peer, 5555, synAck, ""), false, true, ""},
		"a SYN|ACK of the number itself":           {segment(true, peer, pISN, synAck, ""), false, true, ""},
		"a refusal of another number":              {segment(true, 0, 5555, refusal, ""), false, true, ""},
		"a RST without a number":                   {segment(true, 0, 0, packet.RST, ""), true, true, ""},
		"a SYN|ACK of the SYN":                     {segment(true, peer, pISN+1, synAck, ""), true, true, ""},
		"a refusal of the SYN":                     {segment(true, 0, pISN+1, refusal, ""), true, true, ""},
		"what may be of an older connection":       {segment(true, peer, 5555, packet.ACK, "x"), true, true, ""},
		"another number, and one guest has called": {segment(true, peer, 5555, synAck, ""), false, false, ""},
		"a SYN|ACK of the SYN and its data":        {segment(true, peer, pISN+5, synAck, ""), true, true, "data"},
		"a SYN|ACK of the SYN without its data":    {segment(true, peer, pISN+1, synAck, ""), true, true, "data"},
		"a SYN|ACK of more than the data":          {segment(true, peer, pISN+6, synAck, ""), false, true, "data"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pguest, sguest := new(recorder), new(recorder)
				w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
					p.Deliver, s.Deliver = pguest.take, sguest.take
				})
				defer w.end()
				w.connect()
				w.checkpoint()
				w.must(w.p.WritePacket(segment(false, pISN, 0, packet.SYN, c.data)))
				if c.other {
					w.must(w.s.WritePacket(segment(false, sISN, 0, packet.SYN, c.data)))
				}
				synctest.Wait()
				w.pw.in <- c.first
				pguest.want(t, "the primary's guest", c.first)
				sguest.mu.Lock()
				n := len(sguest.got)
				sguest.got = nil
				sguest.mu.Unlock()
				if (n == 1) != c.mirrored {
					t.Errorf("the secondary's guest is given %d packets, want it: %t", n, c.mirrored)
				}
				if !c.other || c.mirrored {
					return
				}
				w.pw.in <- segment(true, peer, pISN+1, synAck, "")
				pguest.want(t, "the answer", segment(true, peer, pISN+1, synAck, ""))
				sguest.want(t, "the answer, in its own numbers", segment(true, peer, sISN+1, synAck, ""))
			})
		})
	}
}
