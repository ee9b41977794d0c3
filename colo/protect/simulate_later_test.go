package protect

import (
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// What befalls seeds from laterSeeds on besides all the rest: hosts die together and start again from
// their disks, strangers come to their ports, questions to an arbiter hang, a guest is saved to
// something that fails; and at the end the protection may be ended on purpose.

// isLater chooses what a seed has of this.
func (s *simulation) isLater(seed uint64) { s.later = rand.New(rand.NewPCG(seed, 9)) }

// alsoBefalls makes one fault of those.
func (s *simulation) alsoBefalls(h *host) {
	draw := s.later
	switch what := draw.IntN(8); what {
	case 0, 1:
		if s.kept != nil {
			s.coldStart()
		}
	case 2, 3, 4:
		for range 1 + draw.IntN(3) {
			s.stranger(h)
		}
	case 5, 6:
		n := int64(1 + draw.IntN(3))
		h.hangs.Store(n)
		s.say("%d questions of %s to its arbiter hang", n, h.name)
	case 7:
		s.savesInVain(h)
	}
}

// stranger has somebody connect to the port of a host, say what nobody says, and go away.
func (s *simulation) stranger(h *host) {
	draw := s.later
	w := s.f
	w.mu.Lock()
	l := w.at[h.name]
	w.mu.Unlock()
	if l == nil {
		return
	}
	generation := uint64(int64(h.copyOf.Load()) + int64(draw.IntN(3)) - 1)
	said := hello{Channel: chControl, Guest: "guest", Host: "x", Generation: min(generation, maxGeneration)}
	what := draw.IntN(7)
	switch what {
	case 0:
		said.Offer = h.job.offer()
	case 1:
		said.Channel, said.Token = chAgain, "x"
	case 2:
		said.Channel, said.Host = chAsk, s.others(h.name)[0]
	case 3:
		said.Channel = chSession
	case 4:
		said.Channel, said.Host = chAgain, s.others(h.name)[0]
	}
	message := &sizedBuffer{}
	writeHello(message, said)
	b := message.b
	switch draw.IntN(4) {
	case 0:
		b = b[:draw.IntN(len(b))]
	case 1:
		b[draw.IntN(len(b))] ^= 1 << draw.IntN(8)
	case 2:
		for range draw.IntN(300) {
			b = append(b, byte(draw.Uint32()))
		}
	}
	stays := time.Duration(draw.IntN(1<<draw.IntN(14))) * time.Millisecond
	s.say("a stranger comes to %s, on %q, for %v", h.name, said.Channel, stays)
	near, far := newCable(nil, h, nil, nil)
	s.verbs.Go(func() {
		defer near.Close()
		select {
		case l.in <- net.Conn(far):
		case <-l.closed:
			return
		case <-time.After(stays):
			return
		}
		near.Write(b)
		near.SetReadDeadline(time.Now().Add(stays))
		var answer [4096]byte
		for n, err := near.Read(answer[:]); err == nil && n > 0; n, err = near.Read(answer[:]) {
		}
		wait.For(s.t.Context(), stays)
	})
}

// A sizedBuffer keeps what is written to it, up to a size at which it fails if that is not 0.
type sizedBuffer struct {
	b    []byte
	most int
}

var errNoRoom = errors.New("there is no room")

func (b *sizedBuffer) Write(p []byte) (int, error) {
	if b.most > 0 && len(b.b)+len(p) > b.most {
		return 0, errNoRoom
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

// savesInVain has a guest saved to something that has no room for it: it runs on.
func (s *simulation) savesInVain(h *host) {
	room := &sizedBuffer{most: 1 + s.later.IntN(1<<(4+s.later.IntN(10)))}
	s.say("%s saves its guest, where there is room for %d bytes", h.name, room.most)
	s.verbs.Go(func() {
		if err := h.job.Save(s.t.Context(), room); err == nil {
			s.t.Errorf("%s has saved its guest in %d bytes", h.name, room.most)
		}
	})
}
