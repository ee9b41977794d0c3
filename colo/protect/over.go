package protect

import (
	"context"

	"github.com/gocolo/lockstep/internal/wait"
)

// A primary that has lost its secondary, and has no arbiter, waits for a person who knows that the
// secondary does not go on. Often the secondary knows it: it had no whole copy, as where the
// synchronisation broke at its end, or has given up what it had. Then it waits for a primary. So the
// primary asks it, as soon as it is reached, and goes on by itself if the secondary says so. What it
// says is true for good: a session that is over does not begin again, and the guest of a host that
// waits is that of no session. Each of the two also asks whether the other one goes on (overtakenBy).

// isOver notes that this host, which waits, has followed in a session from which it never goes on.
func (j *Job) isOver(s *session) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.departed, j.departedFrom = s.peer.token, s.peer.host
}

// leftBy returns the session in which this host follows the one that asks, if that has lost the
// session: a primary asks with a token for no other reason. Where all connections but one are well,
// this host hears of it by nothing else, and would follow for ever, so that nobody goes on. The
// caller holds mu.
func (j *Job) leftBy(h hello) *session {
	s := j.current
	if j.manual == nil || s == nil || s.primary != nil || h.Token == "" || h.Token != s.peer.token || h.Host != s.peer.host {
		return nil
	}
	return s
}

// askOther asks the other host of a session whose guest stands still here, where no arbiter is there
// to be asked, again and again until ctx ends: whether it goes on, and a secondary, whether it may
// still. It returns what waits for the end of that.
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
				if s.peer.saysOver(answer) || runsIn(answer.State) && s.overtakenBy(answer, true) {
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

// saysOver takes the answer to the question whether the other side, a secondary, may still go on,
// and reports whether it says that it does not. One that knows of a later generation says nothing
// of this one.
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
