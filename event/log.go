package event

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"time"
)

// Level returns the level at which an event belongs in an operator's log:
//
//	Error  the guest, a disk or the pair is damaged: GUEST_TORN, DISK_BROKEN of a secondary, whose
//	       disk it is, DISK_FAILED, DISK_OVERLAY_FULL, GUEST_PANICKED, BLOCK_IMAGE_CORRUPTED
//	Warn   something has failed, and is being dealt with: DISK_BROKEN of a primary, which keeps
//	       account of what the secondary lacks, COLO_EXIT with an error, OUTPUT_STALLED,
//	       PROTECTION_REFUSED, an ARBITRATION that nobody or a no answers (unless that no is what
//	       an order wants), DISK_STALLED, DISK_OVERLAY_HALF_FULL, BLOCK_IO_ERROR, BLOCK_JOB_ERROR, QUORUM_FAILURE
//	Debug  each step of what works: CHECKPOINT_START, CHECKPOINT_COMMIT, STOP and RESUME,
//	       MIGRATION_PASS, DISK_SYNC_PROGRESS, NETWORK_DIVERGED, NETWORK_FLOW_APART and _TOGETHER,
//	       an ARBITRATION that is asked after an order, or answered by the no that it wants
//	Info   all others; HEARTBEAT_LOST is one, since it ends the session: COLO_EXIT tells of that
func Level(e Event) slog.Level {
	switch e := e.(type) {
	case GuestTorn, DiskFailed, DiskOverlayFull, GuestPanicked, BlockImageCorrupted:
		return slog.LevelError
	case DiskStalled:
		if !e.Ended {
			return slog.LevelWarn
		}
	case DiskBroken:
		if e.Mode == ModePrimary {
			return slog.LevelWarn
		}
		return slog.LevelError
	case OutputStalled, ProtectionRefused, DiskOverlayHalfFull, BlockIOError, BlockJobError, QuorumFailure:
		return slog.LevelWarn
	case COLOExit:
		if e.Reason == ExitError {
			return slog.LevelWarn
		}
	case Arbitration:
		switch {
		case e.Answer == ArbiterRefused && !e.Released, e.Answer == ArbiterUnreachable:
			return slog.LevelWarn
		case e.Released, e.Ordered && e.Answer == ArbiterAsked:
			return slog.LevelDebug
		}
	case CheckpointStart, CheckpointCommit, Stop, Resume, MigrationPass, DiskSyncProgress, NetworkDiverged, NetworkFlowApart, NetworkFlowTogether:
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// Attrs returns the members of an event's data as attributes of a log: "mode" is called
// "side", "epoch" is called "checkpoint", nanoseconds are durations, and a member with
// the option omitempty is left out if it is zero.
func Attrs(e Event) []slog.Attr {
	v := reflect.ValueOf(e)
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	var all []slog.Attr
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "" || name == "-" || strings.Contains(options, "omit") && v.Field(i).IsZero() {
			continue
		}
		all = append(all, attr(name, v.Field(i)))
	}
	return all
}

func attr(name string, v reflect.Value) slog.Attr {
	switch flow, ok := v.Interface().(Flow); {
	case ok:
		return slog.String(name, flow.Source+" > "+flow.Destination)
	case name == "mode":
		return slog.Any("side", text(v))
	case name == "epoch":
		name = "checkpoint"
	}
	if short, ok := strings.CutSuffix(name, "-ns"); ok && v.CanInt() {
		return slog.Duration(short, time.Duration(v.Int()))
	}
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	return slog.Any(name, text(v))
}

// text returns a value in the form in which a log prints it: a word of any type as a string.
func text(v reflect.Value) any {
	if v.Kind() != reflect.String {
		return v.Interface()
	}
	if s, ok := v.Interface().(interface{ String() string }); ok {
		return s.String()
	}
	return v.String()
}

// Log writes an event to a log, at its [Level]: its name is the message, the guest
// and its [Attrs] are the attributes. A nil logger gets nothing. A host that wants one
// log of everything subscribes it to its bus:
//
//	defer bus.SubscribeAll(func(r event.Record) { event.Log(logger, r) })()
func Log(l *slog.Logger, r Record) {
	if l == nil {
		return
	}
	level := Level(r.Event)
	if !l.Enabled(context.Background(), level) {
		return
	}
	all := Attrs(r.Event)
	if r.Guest != "" {
		all = append([]slog.Attr{slog.String("guest", r.Guest)}, all...)
	}
	l.LogAttrs(context.Background(), level, r.Event.Name(), all...)
}
