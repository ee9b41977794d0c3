package proxy_test

import (
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
)

// Guests that take data with a SYN answer it before the client has answered theirs. What they say is
// compared once the client has, and no checkpoint is needed.
func TestGuestsThatAnswerTheDataOfASYNAreCompared(t *testing.T) {
	const client, pISN, sISN, synAck = 500, 1000, 9000, packet.SYN | packet.ACK
	for name, write := range map[string]func(w *world, p []byte) error{
		"written": func(w *world, p []byte) error { return w.s.WritePacket(p) },
		"composed": func(w *world, p []byte) error {
			return w.s.ComposePacket(len(p), func(b []byte) bool { copy(b, p); return true })
		},
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
				w.pw.in <- segment(true, client, 0, packet.SYN, "ask!")
				pguest.drain()
				for _, g := range []struct {
					isn  uint32
					send func(p []byte) error
				}{{pISN, w.p.WritePacket}, {sISN, func(p []byte) error { return write(w, p) }}} {
					w.must(g.send(segment(false, g.isn, client+5, synAck, "")))
					w.must(g.send(segment(false, g.isn+1, client+5, push, "answer")))
				}
				synctest.Wait()
				w.pw.in <- segment(true, client+5, pISN+1, packet.ACK, "")
				synctest.Wait()
				if s := w.p.Stats(); s.Matched != 2 || s.Held != 0 || s.Diverged != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}
