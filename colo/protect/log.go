package protect

import (
	"context"
	"log/slog"

	"github.com/gocolo/lockstep/event"
)

// sessionLog returns the logger for a session: each record says of which guest and of which
// generation it is, and the session adds its side and its checkpoint. When the host goes on the
// generation becomes another. COLO_EXIT says in words who has ended a session that was ended on
// purpose.
func (j *Job) sessionLog() *slog.Logger {
	return slog.New(edited{j.cfg.Logger.Handler(), j.ofGeneration})
}

// ofGeneration adds to a record of which guest and generation it is.
func (j *Job) ofGeneration(r slog.Record) slog.Record {
	j.mu.Lock()
	s, generation := j.current, j.generation
	j.mu.Unlock()
	all := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	all.AddAttrs(slog.String("guest", j.cfg.Name), slog.Uint64("generation", generation))
	requested := false
	r.Attrs(func(a slog.Attr) bool {
		all.AddAttrs(a)
		requested = requested || a.Key == "reason" && a.Value.String() == event.ExitRequest.String()
		return true
	})
	ended := requested && r.Message == (event.COLOExit{}).Name() || r.Message == (event.ProtectionEnded{}).Name()
	if ended && s != nil {
		if why := s.whoEnded(); why != "" {
			all.AddAttrs(slog.String("why", why))
		}
	}
	return all
}

// pairLog returns the logger for the heartbeat of the present session, and for the
// connections of its disks, which belong to the pair and not to package colo's
// session. A record gets side, generation and checkpoint when it is made.
func (j *Job) pairLog() *slog.Logger { return slog.New(edited{j.cfg.Logger.Handler(), j.ofPair}) }

// ofPair adds to a record which guest, side, generation and checkpoint it is of.
func (j *Job) ofPair(r slog.Record) slog.Record {
	j.mu.Lock()
	s, generation := j.current, j.generation
	j.mu.Unlock()
	side, checkpoint := s.mode(), uint64(0)
	if s != nil {
		checkpoint, _ = s.committed()
	}
	all := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	all.AddAttrs(slog.String("guest", j.cfg.Name), slog.Uint64("generation", generation), slog.String("side", side.String()), slog.Uint64("checkpoint", checkpoint))
	r.Attrs(func(a slog.Attr) bool { all.AddAttrs(a); return true })
	return all
}

// beatLog returns the logger of a session's heartbeat. Its end is that of the session, which tells
// of it: one loss is one record. What is left is that this process did not run for a while.
func (j *Job) beatLog(s *session) *slog.Logger {
	return slog.New(edited{j.pairLog().Handler(), func(r slog.Record) slog.Record {
		late := false
		r.Attrs(func(a slog.Attr) bool { late = a.Key == "late"; return !late })
		if late && !s.inOrder() {
			return lowered(r, slog.LevelWarn)
		}
		return lowered(r, slog.LevelDebug)
	}})
}

// diskLog returns the logger for the connections of the disks of the present session. One that
// fails is told of by DISK_BROKEN, and by the end of the session.
func (j *Job) diskLog() *slog.Logger {
	return slog.New(edited{j.pairLog().Handler(), func(r slog.Record) slog.Record { return lowered(r, slog.LevelDebug) }})
}

// lowered returns a record at the level most, if it is above that: another record tells the same, at its
// own level.
func lowered(r slog.Record, most slog.Level) slog.Record {
	r.Level = min(r.Level, most)
	return r
}

// edited passes records on as edit returns them, which may lower their level.
type edited struct {
	slog.Handler
	edit func(slog.Record) slog.Record
}

func (h edited) Handle(ctx context.Context, r slog.Record) error {
	if r = h.edit(r); !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h edited) WithAttrs(all []slog.Attr) slog.Handler {
	return edited{h.Handler.WithAttrs(all), h.edit}
}

func (h edited) WithGroup(name string) slog.Handler { return edited{h.Handler.WithGroup(name), h.edit} }

// broken returns the highest level at which a DISK_BROKEN is logged. When the session was ended on
// purpose what was under way between the disks is no loss. Otherwise that of a primary, which keeps
// account of what the secondary lacks, ends the session, which tells of it.
func (j *Job) broken(e event.DiskBroken) slog.Level {
	switch s := j.session(); {
	case s != nil && s.whoEnded() != "":
		return slog.LevelDebug
	case e.Mode == event.ModePrimary:
		return slog.LevelInfo
	}
	return slog.LevelError
}

// logState tells of a change of state.
func (j *Job) logState(to State, e event.JobStatusChange) {
	s := j.session()
	side, checkpoint := s.mode(), uint64(0)
	if s != nil {
		checkpoint, _ = s.committed()
	} else if to.runs() {
		side = event.ModePrimary
	}
	j.cfg.Logger.Info("protect", "guest", e.ID, "side", side.String(), "generation", e.Generation, "checkpoint", checkpoint, "state", e.State, "reason", e.Reason)
}

// logDisks tells of what happens to the job's disks, until it is cancelled.
func (j *Job) logDisks() (cancel func()) {
	return j.cfg.Events.SubscribeAll(func(r event.Record) {
		var disk string
		switch e := r.Event.(type) {
		case event.DiskBroken:
			disk = e.Disk
		case event.DiskFailed:
			disk = e.Disk
		case event.BlockIOError:
			disk = e.NodeName
		case event.DiskSynchronised:
			disk = e.Disk
		case event.DiskResynchronised:
			disk = e.Disk
		case event.DiskVerified:
			disk = e.Disk
		case event.DiskOverlayHalfFull:
			disk = e.Disk
		case event.DiskOverlayFull:
			disk = e.Disk
		default:
			return
		}
		for _, d := range j.cfg.Disks { // a bus may be that of several jobs
			if d.cfg.Name == disk && (r.Guest == "" || r.Guest == j.cfg.Name) {
				j.mu.Lock()
				generation := j.generation
				j.mu.Unlock()
				log := j.cfg.Logger
				if e, ok := r.Event.(event.DiskBroken); ok {
					log = slog.New(edited{log.Handler(), func(r slog.Record) slog.Record { return lowered(r, j.broken(e)) }})
				}
				event.Log(log.With("guest", j.cfg.Name, "generation", generation), event.Record{Event: r.Event})
				return
			}
		}
	})
}
