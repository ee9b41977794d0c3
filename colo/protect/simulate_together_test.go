package protect

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"
)

// What befalls the hosts of a seed together, and what befalls one connection of a pair alone.

// together does one of them, to all hosts or to one.
func (s *simulation) together(h *host) {
	draw := s.latest
	switch draw.IntN(6) {
	case 0:
		s.say("all hosts are stopped")
		all := s.up()
		for _, o := range all {
			o.suspend()
		}
		s.elapse(time.Duration(draw.IntN(4000)) * time.Millisecond)
		s.say("all go on")
		for _, o := range all {
			o.resume()
		}
	case 1, 2:
		channels := []string{chControl, chSession, chHeartbeat, chDisk}
		one, ways := channels[draw.IntN(len(channels))], 1+draw.IntN(3)
		s.say("nothing arrives on %q, in directions %b", one, ways)
		s.f.ways.silenceChannel(one, ways)
	case 3, 4:
		for range 2 + draw.IntN(2) {
			hosts := s.up()
			s.anyVerb(hosts[draw.IntN(len(hosts))])
			time.Sleep(time.Duration(draw.IntN(1<<draw.IntN(8))) * time.Millisecond)
		}
	case 5:
		h.tardy.Store(draw.Int64N(int64(s.term)))
		s.say("what the arbiter has done for %s it answers %v later", h.name, time.Duration(h.tardy.Load()))
		if draw.IntN(2) == 0 {
			time.Sleep(s.term)
			s.say("%s reaches nobody", h.name)
			h.noArbiter.Store(true)
			s.f.ways.part(s.names...)
		}
	}
}

// anyVerb calls a verb that an operator may call at any time, also while another is under way.
func (s *simulation) anyVerb(h *host) {
	switch s.latest.IntN(5) {
	case 0, 1:
		s.verb(h, "switchover", h.job.Switchover)
	case 2:
		s.verb(h, "pause and resume", func(ctx context.Context) error { return s.pauses(ctx, h) })
	case 3:
		s.verb(h, "checkpoint", func(context.Context) error { return h.job.Checkpoint() })
	case 4:
		s.verb(h, "failover", func(context.Context) error { return h.job.Failover() })
	}
}

// silenceChannel keeps what is sent on the connections of a channel that there are from arriving:
// directions has a bit for what is sent by the end that dialled, and one for the other.
func (w *ways) silenceChannel(prefix string, directions int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.cables {
		a.w.mu.Lock()
		if strings.HasPrefix(a.w.channel, prefix) {
			a.w.mute = directions
		}
		a.w.mu.Unlock()
		w.silence(a)
	}
}

// learn notes which channel a connection is, by the hello that begins it.
func (w *cable) learn(hello []byte) {
	const before = `"channel":"`
	if i := bytes.Index(hello, []byte(before)); i >= 0 && w.channel == "" {
		name, _, _ := bytes.Cut(hello[i+len(before):], []byte(`"`))
		w.channel = string(name)
	}
}

// muted reports whether what an end sends does not arrive, on this connection alone.
func (e *cableEnd) muted() bool {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return e.w.mute&(1<<slices.Index(e.w.ends[:], e)) != 0
}

// unmute lets what either end sends arrive again, and reports whether it had not arrived.
func (w *cable) unmute() (was bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, w.mute = w.mute != 0, 0
	return was
}
