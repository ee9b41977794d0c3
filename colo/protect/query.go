package protect

import (
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// Stats are figures of a job since it began.
type Stats struct {
	Checkpoints uint64 // committed on both sides, the first of a session included
	Takeovers   uint64 // this host went on in the place of a lost primary
	Switchovers uint64 // this host gave the guest to the other, which runs it
	// Downtime is how long the guest stood still in the last switchover from here,
	// until the other side had said that it runs. It does not include the time in
	// which this host then ends its session.
	Downtime time.Duration
}

// Progress is how far a synchronisation has come, or, in a switchover, how much of the last
// checkpoint has been sent while the guest still runs. It is an estimate: memory that the
// guest dirties meanwhile is sent again, and a page of zeros, or a compressed one, takes fewer bytes
// on the wire than it has.
type Progress struct {
	Total     uint64 // the guest's memory, in bytes; in a switchover what it has written
	Sent      uint64 // on the wire, in bytes; pages of zeros cost nothing there
	Remaining uint64 // of the memory, in bytes, as if nothing were dirtied again
	// Left is the time that Remaining takes at the rate so far; 0: not known.
	Left time.Duration
}

// Info has the state and the figures of a job, as Query returns them.
type Info struct {
	Guest, Host string
	State       State
	Reason      string    // why it is in this state; "" if it says nothing
	Since       time.Time // when it came to this state
	Role        event.Mode
	Peer        string // the other host's name; "" if there is none
	Generation  uint64 // that this host holds or has followed
	// Open says whether this host may act for the guest now. Until is when that
	// ends if nothing is renewed. It is the zero time if this host may not, and if nothing but
	// an order ends it, as with a grant without a deadline.
	Open  bool
	Until time.Time
	// LastError is the last thing that went wrong, and LastErrorAt when. They stay when
	// things go well again. On a host that has lost the other one, and which asks who goes on
	// or on which the guest runs alone, it is that loss, in words, and what has gone wrong since
	// then beside it, until the guest is protected again: errors.Is and errors.As find both,
	// and what was noticed first behind the words. The end of a session that somebody has ordered, on either host,
	// is none, unless the guest has ended (ErrCompleted). Nil and the zero time: nothing did.
	LastError   error
	LastErrorAt time.Time
	Progress    *Progress  // while synchronising and switching over, on the primary
	Session     *colo.Info // of the present session
	Stats       Stats
}

// Query returns the present state and figures. It does not wait for I/O.
func (j *Job) Query() Info {
	j.mu.Lock()
	in := Info{
		Guest: j.cfg.Name, Host: j.cfg.Host, State: j.m.state, Reason: j.m.reason, Since: j.since,
		Generation: j.generation, LastError: j.lastErr, LastErrorAt: j.lastErrAt, Stats: j.stats,
	}
	s := j.current
	j.mu.Unlock()
	in.Open = j.keeper.Gate().Open()
	if until := j.keeper.Until(); !failover.Endless(until) {
		in.Until = until
	}
	in.Role = event.ModeNone
	switch {
	case in.State.runs() || in.State == SwitchingOver:
		in.Role = event.ModePrimary
	case in.State == Following:
		in.Role = event.ModeSecondary
	}
	if s == nil {
		return in
	}
	in.Peer = s.peer.host
	if in.State == Asking {
		in.LastErrorAt, in.LastError = s.lossSince(in.Since, in.LastErrorAt, in.LastError)
	}
	last := s.converges() // asked first: progress that is read after that is no longer the synchronisation's
	session := s.colo.Info()
	in.Session = &session
	switch in.State {
	case SwitchingOver:
		in.Progress = new(Progress)
		if p := session.Sync; last {
			*in.Progress = Progress{Total: p.Done + p.Remaining, Sent: p.Done, Remaining: p.Remaining, Left: p.ExpectedDowntime}
		}
	case Synchronising:
		p := &Progress{Sent: s.wire.n.Load()}
		for _, b := range j.cfg.Guest.Blocks() {
			p.Total += uint64(len(b.Host))
		}
		p.Remaining = p.Total
		sync := session.Sync
		if sync.Passes > 0 {
			p.Remaining = min(p.Total, sync.Left)
		}
		if done := sync.Total - min(sync.Total, sync.Left); done > 0 {
			p.Left = time.Duration(float64(time.Since(s.began)) * float64(p.Remaining) / float64(done))
		}
		in.Progress = p
	}
	return in
}

// OutputLatency returns how long the packets of the guest that have left from this
// host were kept, since the job was made: from when the guest sent them until the
// network had taken them. It merges the networks that have a method OutputLatency() of
// that result, as NIC and Proxy do; ok is false if none has. It does not wait for I/O.
func (j *Job) OutputLatency() (l event.Latency, ok bool) {
	return nets(j.cfg.Network).OutputLatency()
}

func (j *Job) count(event.CheckpointCommit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stats.Checkpoints++
}
