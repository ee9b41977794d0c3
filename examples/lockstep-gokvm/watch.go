package main

import (
	"errors"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// watch prints what goes wrong, a line of progress now and then, and that the guest has ended
// on the other host.
func (h *host) watch() {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	told := false // that the pair is split
	progress := time.Now()
	for {
		select {
		case <-tick.C:
		case <-h.life.Done():
			return
		}
		q := h.job.Load().Query()
		if q.State == protect.Waiting && errors.Is(q.LastError, protect.ErrCompleted) {
			h.p.phase("ended", "on the other host: %v", errEnded)
			h.end(errEnded)
		}
		if q.LastError != nil {
			h.p.trouble(q.LastError)
		}
		if there, split := h.parted(q); split && !told {
			told = true
			h.p.phase("split", "%s runs the guest as well: both hosts have gone on from checkpoints that they had in common, in generation %d there and %d here. What they have done since cannot be put together: end one of them, and start it again with a new image", there.Host, there.Generation, q.Generation)
		}
		if h.o.progress > 0 && time.Since(progress) >= h.o.progress && !h.terminal.raw() { // the guest's screen is its own
			progress = time.Now()
			h.p.say("%s", h.p.progress())
		}
	}
}

// parted reports whether both hosts run the guest, and returns the standing of the other: two
// hosts that lost each other, and had no arbiter to ask, have both gone on, and reach each
// other again. If -arbiter names a place that both reach it returns false: if both run then,
// one will find out from the arbiter that it may not.
func (h *host) parted(q protect.Info) (protect.Standing, bool) {
	var no *protect.RefusedError
	if h.o.place != "" || q.State != protect.Alone || !errors.As(q.LastError, &no) || !no.There || !h.open() {
		return protect.Standing{}, false
	}
	there, err := h.ask(h.life)
	if err != nil || !runs(there.State) {
		return there, false
	}
	now := h.job.Load().Query()
	return there, now.State == protect.Alone && now.Generation == q.Generation
}

// runs reports whether the guest runs on a host that is in a state.
func runs(s protect.State) bool {
	switch s {
	case protect.Alone, protect.Synchronising, protect.Protected, protect.Paused, protect.Cancelled:
		return true
	}
	return false
}
