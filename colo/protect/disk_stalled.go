package protect

import (
	"context"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A disk whose storage hangs answers nothing, and whoever has asked it stands still: the guest, a
// checkpoint, or a host that takes over. An operator is told of it, long before a session that ends
// gives the disk up (DiskConfig.HungAfter).

// stallLooks is how often it is looked, in the time that a disk has, whether it has answered.
const stallLooks = 8

// watchDisks tells of disks that do not answer, until ctx ends.
func (j *Job) watchDisks(ctx context.Context) {
	look := time.NewTicker(max(time.Millisecond, j.cfg.PeerTimeout/stallLooks))
	defer look.Stop()
	stalls := make([]stall, len(j.cfg.Disks))
	for {
		select {
		case now := <-look.C:
			for i, d := range j.cfg.Disks {
				if e, ok := stalls[i].look(&d.waits, now, j.keeper.Gate().Open(), j.cfg.PeerTimeout); ok {
					if !e.Ended {
						stalls[i].host = j.late(d, stalls[i].of.op, now)
					}
					e.Disk, e.Host = d.cfg.Name, stalls[i].host
					j.tellStall(e)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// A stall is what is known of a disk that does not answer. It is pure: times are told.
type stall struct {
	on    bool // it has been told of; what follows is of no meaning otherwise
	i     int  // what is waited for, of a diskWaits
	of    diskWait
	first diskWait  // what was told of
	since time.Time // since when
	host  string    // whose disk it is

	shut time.Time // when the gate was last seen shut
}

// look returns what is to be told of a disk now, if anything is: once that it has not answered for
// limit, and once that nothing has been waited for that long any more. What waits for a gate that is
// shut is not waited for, unless it was before the gate shut.
func (s *stall) look(w *diskWaits, now time.Time, open bool, limit time.Duration) (e event.DiskStalled, tell bool) {
	if !open {
		s.shut = now
	}
	i, o, from, ok := w.oldest(s.shut)
	late := ok && now.Sub(from) >= limit
	switch {
	case late:
		s.i, s.of = i, o
	case s.on && w.still(s.i, s.of):
		late = true
	}
	if late == s.on {
		return e, false
	}
	if s.on = late; late {
		s.first, s.since = o, from
	}
	return event.DiskStalled{Operation: diskOpNames[s.first.op], WaitedNS: int64(now.Sub(s.since)), Ended: !late}, true
}

// late returns which host's disk has not answered a request that has been waited for too long: this
// host's, by its name, unless the request waits for the other's too and nothing here is late. Of a disk
// that is about to change its side this host's is named.
func (j *Job) late(d *Disk, op diskOp, now time.Time) string {
	here := j.cfg.Host
	s := j.session()
	if op == opRead || op == opGeneration || s == nil || !d.mu.TryRLock() { // a writer of it may wait for what hangs
		return here
	}
	primary := d.primary
	d.mu.RUnlock()
	if primary == nil { // it follows, and waits for nobody else
		return here
	}
	if _, at, since := primary.UnderWay(); at != "" && now.Sub(since) >= j.cfg.PeerTimeout/lateHere {
		return here
	}
	return s.peer.host
}

// lateHere is of which part of the time that a disk has one operation takes by itself, where it is this
// host's disk that is late, and not the other's: several may have taken their time one after the other.
const lateHere = 4

// tellStall tells of a disk that does not answer, or does again.
func (j *Job) tellStall(e event.DiskStalled) {
	e.Mode, e.Guest = j.side(), j.cfg.Name
	if !e.Ended {
		j.note(fmt.Errorf("disk %q of host %s: a %s has not been answered for %v", e.Disk, e.Host, e.Operation, time.Duration(e.WaitedNS).Round(time.Millisecond)))
	}
	j.cfg.publish(e)
	e.Guest = "" // the logger says it
	event.Log(j.ownLog(), event.Record{Event: e})
}

// side returns which side this host is, as far as its state says so.
func (j *Job) side() event.Mode {
	if j.State().runs() {
		return event.ModePrimary
	}
	return j.session().mode()
}
