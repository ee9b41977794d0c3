package protect

import (
	"context"
	"net"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// A control connection may end, or fall silent, while the others of its session are well: then
// no promise is heard, and no order to switch over. The primary makes another one for the same
// session, whose token says that it belongs to it, and both hosts leave the old one.

// chAgain is the channel of a control connection that takes the place of another.
const chAgain = "control-again"

// reconnect makes the control connection of a primary's session again, as often as it is needed,
// until ctx ends.
func (j *Job) reconnect(ctx context.Context, s *session) {
	p := s.peer
	h := hello{Channel: chAgain, Guest: j.cfg.Name, Generation: p.generation, Host: j.cfg.Host, Token: p.token}
	needed := func() bool { return p.mute || p.gone } // p.mu is held
	for {
		// The end of a session, which closes it too, is heard of in the time of Lost, after
		// which both hosts say what they lack.
		if p.await(ctx, needed) != nil || wait.For(ctx, j.cfg.Lost+minRedial) != nil {
			return
		}
		for pause := minRedial; ; pause = min(2*pause, maxRedial) {
			still := false
			p.get(func() { still = needed() })
			if !still {
				break // it was only slow
			}
			if j.State() == Protected {
				conn, _, err := dial(ctx, &j.cfg, h)
				if err == nil {
					if p.replace(conn, needed) {
						j.pairLog().Info("the control connection is made again", "peer", p.host)
					}
					break
				}
				if ctx.Err() == nil {
					j.note(err)
				}
			}
			if wait.For(ctx, pause) != nil {
				return
			}
		}
	}
}

// reconnected takes a control connection in the place of the one that the session here has, a
// secondary's. It runs on a goroutine of the port.
func (j *Job) reconnected(conn net.Conn, h hello) {
	j.mu.Lock()
	s := j.current
	ours := j.m.state == Following && s != nil && s.primary == nil && h.Token != "" && h.Token == s.peer.token && h.Generation == s.peer.generation && h.Host == s.peer.host
	j.mu.Unlock()
	if ours {
		_, ours = s.committed() // before that the end of the connection is that of the session
	}
	if !ours {
		turnAway(conn, "the %s connection belongs to no session", h.Channel)
		return
	}
	err := writeHello(conn, hello{Channel: h.Channel, Guest: h.Guest, Host: j.cfg.Host, Generation: h.Generation, Token: h.Token})
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return
	}
	s.peer.replace(conn, func() bool { return true })
}

// replace makes conn the control connection, and closes the one that was. After the end of the
// session, or if it is not wanted any more, it closes conn, and returns false. wanted is called
// with p.mu held.
func (p *peer) replace(conn net.Conn, wanted func() bool) bool {
	ok := false
	p.get(func() {
		if ok = !p.closed && wanted(); ok {
			p.control.Close() // whoever writes to it waits no longer
		}
	})
	if ok {
		p.write <- struct{}{}
		defer func() { <-p.write }()
		p.set(func() {
			if ok = !p.closed; ok {
				p.control.Close() // it may be another by now
				p.control, p.mute, p.gone, p.again = &line{conn}, false, false, true
			}
		})
	}
	if !ok {
		conn.Close()
	}
	return ok
}

// replaced waits until was is not the control connection any more, or until ctx ends.
func (p *peer) replaced(ctx context.Context, was net.Conn) error {
	return p.await(ctx, func() bool { return p.control != was })
}
