package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// A track is one side's capture, and what is learned of it before it is compared.
type track struct {
	rec *recording
	sel selection

	numbers *numbering
	first   time.Time
	frames  int
	skipped bool // there are packets that are not the guest's, by -guest and -vlan
	tagged  bool
	dialled bool    // there is a session of PPP over Ethernet
	snap    int     // the shortest frame that was cut, in bytes; 0: none was
	memory  *memory // of the streams, if a frame of either side was cut

	sources map[[6]byte][6]byte // what numbering.sources returns, once it is needed

	cut     bool  // the file ends within a packet
	foreign int   // packets of links that are not read
	strange error // of the first of these
	broken  error // why it could not be read to its end
}

// each calls fn for each of the guest's packets, in their order. What cannot be read
// is noted, not returned.
func (t *track) each(ctx context.Context, fn func(s shot)) error {
	c, err := t.rec.begin()
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		s, ok := t.next(c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !ok:
			return nil
		}
		fn(s)
	}
}

// next returns the next of the guest's packets, without its tags if they are not to
// be seen.
func (t *track) next(c *capture) (shot, bool) {
	for {
		s, err := c.next()
		if err != nil {
			t.cut, t.foreign, t.strange = c.cut, c.foreign, c.strange
			if err != io.EOF {
				t.broken = fmt.Errorf("%s: %w", t.rec.name, err)
			}
			return shot{}, false
		}
		var p packet.Packet
		if p.Parse(s.data); !t.sel.wants(&p) {
			t.skipped = true
			continue
		}
		t.tagged = t.tagged || p.Link.Tags > 0
		t.dialled = t.dialled || p.Link.PPPoE
		s.data = t.sel.bare(&p)
		return s, true
	}
}

// survey reads the capture once, for what has to be known before the first packet
// is compared.
func (t *track) survey(ctx context.Context) error {
	t.numbers = newNumbering()
	return t.each(ctx, func(s shot) {
		if t.frames++; t.frames == 1 {
			t.first = s.at
		}
		if s.missing > 0 && (t.snap == 0 || len(s.data) < t.snap) {
			t.snap = len(s.data)
		}
		var p packet.Packet
		data, _ := whole(s.data)
		p.Parse(data)
		t.numbers.seen(&p)
		if id, ok := echo(&p); ok {
			t.numbers.asked(flow(&p), id)
		} else if p.IsTCP() {
			b, _ := t.numbers.conn(flow(&p), p.TCP(), s.at)
			if !p.Fragment {
				b.reach.add(p.TCP())
			}
		}
	})
}

// remember reads the capture once more, for the bytes of its streams.
func (t *track) remember(ctx context.Context) error {
	t.memory = &memory{spans: map[place][]span{}}
	n := t.numbers.again()
	err := t.each(ctx, func(s shot) {
		var p packet.Packet
		data, _ := whole(s.data)
		if p.Parse(data); !p.IsTCP() {
			return
		}
		h, k := p.TCP(), flow(&p)
		b, i := n.conn(k, h, s.at)
		from := p.L4 + h.HeaderLen()
		if to := min(p.End, len(s.data)); from < to {
			t.memory.add(place{k, i}, h.Seq()-b.seq, data[from:to])
		}
	})
	t.memory.sort()
	return err
}

// offset returns what has to be added to the times of the secondary so that they are
// the primary's: the connections begin at the same time, or else the captures do. A
// difference of up to a second is none, because guests take some time, too.
func offset(p, s *track) time.Duration {
	d := p.first.Sub(s.first)
	for k, list := range s.numbers.conns {
		for i, b := range list {
			if _, ok := s.numbers.difference(p.numbers, k, i); ok {
				if e := p.numbers.conns[k][i].at.Sub(b.at); e.Abs() < d.Abs() {
					d = e
				}
			}
		}
	}
	if p.frames == 0 || s.frames == 0 || d.Abs() <= time.Second {
		return 0
	}
	return d
}

// prepared is a packet as it is compared.
type prepared struct {
	shot
	filled  int // bytes that were not captured, and that the other side's are taken for
	unknown int // bytes that neither has
	anon    bool
}

// prepare gives the packet of the side t, whose numbering is n in this pass, the
// primary's numbers and place, and fills what was not captured.
func (t *track) prepare(s shot, n *numbering, primary, other *track, snap int) prepared {
	r := prepared{shot: s}
	data, ok := whole(s.data)
	if ok {
		r.unknown = len(data) - len(s.data)
	}
	r.data = data
	var p packet.Packet
	p.Parse(data)
	if t != primary {
		if t.sources == nil {
			t.sources = t.numbers.sources(primary.numbers)
		}
		t.numbers.move(&p, primary.numbers, t.sources)
	}
	k := flow(&p)
	if !p.IsTCP() {
		if _, is := echo(&p); is && t.numbers.otherwise(other.numbers, k) {
			anonymous(&p)
			r.anon = true
		}
		if snap > 0 && p.L4OK && p.L4+headers(&p) <= snap && snap < len(data) {
			clear(data[snap:])
			r.unknown = max(r.unknown, len(data)-snap)
		}
		return r
	}
	h := p.TCP()
	b, i := n.conn(k, h, s.at)
	if from := len(s.data); ok && other.memory != nil {
		at := h.Seq() - b.seq + uint32(from-p.L4-h.HeaderLen())
		r.filled = other.memory.fill(place{k, i}, at, data[from:p.End])
		r.unknown -= r.filled
	}
	if t != primary {
		if d, ok := t.numbers.difference(primary.numbers, k, i); ok {
			d.apply(h)
		}
	}
	return r
}
