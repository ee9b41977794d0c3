package protect

import (
	"context"

	"github.com/gocolo/lockstep/internal/wait"
)

// A primary that has lost its secondary, and has no arbiter, waits for a person who knows that the
// secondary does not go on. Often the secondary itself knows: it had no whole copy, because the
// synchronisation broke at its end, or it has given its copy up. Then it waits for a primary. So the
// primary asks the secondary as soon as it can reach it, and goes on by itself if the secondary says
// that it does not. That answer stays true: a session that is over does not begin again, and a host
// that waits has no guest in any session. Each of the two also asks whether the other one goes on
// (overtakenBy).

// isOver records that this host, which waits now, followed in s and will never go on from it.
func (j *Job) isOver(s *session) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.departed, j.departedFrom = s.peer.token, s.peer.host
}

// leftBy returns the current session, in which this host follows, if h comes from the primary of it,
// which has lost it: a primary asks with a token for no other reason. If only one of the connections
// has failed, this host hears of the loss in no other way; it would follow for ever, and nobody would
// go on. The caller holds mu.
func (j *Job) leftBy(h hello) *session {
	s := j.current
	if j.manual == nil || s == nil || s.primary != nil || h.Token == "" || h.Token != s.peer.token || h.Host != s.peer.host {
		return nil
	}
	return s
}

// askOther asks the other host of a session, whose guest stands still here, whether it goes on; it asks
// a secondary also whether it still may. It is for hosts without an arbiter. It asks again and again,
// until it has an answer or ctx ends; join waits for that.
func (j *Job) askOther(ctx context.Context, s *session) (join func()) {
	if j.manual == nil || s.peer.token == "" {
		return func() {}
	}
	asked := make(chan struct{})
	go func() { // joined by the function that is returned
		defer close(asked)
		h := hello{Channel: chAsk, Guest: j.cfg.Name, Host: j.cfg.Host, Generation: s.peer.generation}
		if s.primary != nil {
			h.Token = s.peer.token
		}
		for pause := minRedial; ; pause = min(2*pause, maxRedial) {
			conn, answer, err := dial(ctx, &j.cfg, h)
			if err == nil {
				conn.Close()
				if s.peer.saysOver(answer) || runsIn(answer.State) && s.overtakenBy(answer) {
					return
				}
			}
			if wait.For(ctx, pause) != nil {
				return
			}
		}
	}()
	return func() { <-asked }
}

// saysOver reports whether a secondary answers that it does not go on, and records that. A secondary
// that knows of a later generation says nothing about this one.
func (p *peer) saysOver(answer hello) bool {
	if !answer.Over || answer.Host != p.host || answer.Generation > p.generation {
		return false
	}
	p.set(func() {
		if !p.ended {
			p.ended, p.reason = true, p.host+" does not go on"
		}
	})
	return true
}
