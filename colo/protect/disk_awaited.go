package protect

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/replication"
)

// awaitDisks waits, on a secondary, for the primary's word that the disks here are copies of its own.
// That may take hours, in which it asks for one thing of them after the other. A primary that asks for
// nothing, and beats, is given up, so that it does not keep another one out for ever.
func (j *Job) awaitDisks(ctx context.Context, s *session) error {
	quiet, asked, since := j.quietDisks(), j.askedOfDisks(), time.Now()
	for {
		look, cancel := context.WithTimeout(ctx, j.cfg.PeerTimeout)
		begins := false
		err := s.peer.await(look, func() bool {
			begins = s.peer.begins
			return begins || s.peer.ended || s.peer.lost || s.peer.gone
		})
		cancel()
		switch now := j.askedOfDisks(); {
		case begins:
			return nil
		case err == nil:
			return colo.ErrLost
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case now != asked:
			asked, since = now, time.Now()
		case quiet > 0 && time.Since(since) >= quiet:
			return fmt.Errorf("%w: %s has asked for nothing of the disks here for %v, and has not said that they are copies of its own", colo.ErrLost, s.peer.host, quiet)
		}
	}
}

// quietDisks returns for how long a primary that synchronises the disks may ask for nothing: as long as
// it, or this host, waits for an operation of a disk, of which a flush has three times HungAfter, and a
// PeerTimeout. 0: for ever.
func (j *Job) quietDisks() (quiet time.Duration) {
	for _, d := range j.cfg.Disks {
		after := cmp.Or(d.cfg.HungAfter, replication.DefaultHungAfter)
		if after < 0 {
			return 0
		}
		quiet = max(quiet, 3*after+j.cfg.PeerTimeout)
	}
	return quiet
}

// askedOfDisks returns how many requests have come from primaries to the disks here.
func (j *Job) askedOfDisks() (n uint64) {
	for _, d := range j.cfg.Disks {
		d.mu.RLock()
		for _, e := range d.exports {
			n += e.Requests()
		}
		d.mu.RUnlock()
	}
	return n
}
