package control

import (
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// protection is protect.Info as JSON, with names in the manner of QAPI.
type protection struct {
	Guest       string     `json:"guest"`
	Host        string     `json:"host"`
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	Since       time.Time  `json:"since"`
	Role        event.Mode `json:"role"`
	Peer        string     `json:"peer,omitempty"`
	Generation  uint64     `json:"generation"`
	Open        bool       `json:"open"`
	Until       *time.Time `json:"until,omitempty"`
	LastError   string     `json:"last-error,omitempty"`
	LastErrorAt *time.Time `json:"last-error-at,omitempty"`
	Progress    *progress  `json:"progress,omitempty"`
	Session     *colo.Info `json:"session,omitempty"`
	Checkpoints uint64     `json:"checkpoints"`
	Takeovers   uint64     `json:"takeovers"`
	Switchovers uint64     `json:"switchovers"`
	DowntimeNS  int64      `json:"downtime-ns"`
}

// progress is how far the synchronisation of memory or of a disk has come, in bytes.
type progress struct {
	Total     uint64 `json:"total"`
	Sent      uint64 `json:"sent"`
	Remaining uint64 `json:"remaining"`
	LeftNS    int64  `json:"left-ns"`
}

func newProtection(in protect.Info) protection {
	p := protection{
		Guest: in.Guest, Host: in.Host, State: in.State.String(), Reason: in.Reason, Since: in.Since, Role: in.Role, Peer: in.Peer,
		Generation: in.Generation, Open: in.Open, Session: in.Session,
		Checkpoints: in.Stats.Checkpoints, Takeovers: in.Stats.Takeovers, Switchovers: in.Stats.Switchovers, DowntimeNS: int64(in.Stats.Downtime),
	}
	if !in.Until.IsZero() {
		p.Until = &in.Until
	}
	if in.LastError != nil {
		p.LastError = in.LastError.Error()
		if !in.LastErrorAt.IsZero() {
			p.LastErrorAt = &in.LastErrorAt
		}
	}
	if g := in.Progress; g != nil {
		p.Progress = &progress{g.Total, g.Sent, g.Remaining, int64(g.Left)}
	}
	return p
}

// migrationInfo has those members of MigrationInfo (QAPI) that mean something here. The
// members of MigrationStats that are not counted here are 0, since in QEMU none is ever
// absent.
type migrationInfo struct {
	Status       event.MigrationStatus `json:"status,omitempty"`
	RAM          *migrationStats       `json:"ram,omitempty"`
	ErrorDesc    string                `json:"error-desc,omitempty"`
	Blocked      []string              `json:"blocked-reasons,omitempty"`
	ExpectedDown *int64                `json:"expected-downtime,omitempty"` // how long the guest will stand still at the end, milliseconds
}

// migrationStats is the member ram of query-migrate. (QAPI type MigrationStats.)
type migrationStats struct {
	Transferred    int64   `json:"transferred"`
	Remaining      int64   `json:"remaining"`
	Total          int64   `json:"total"`
	Duplicate      int64   `json:"duplicate"`
	Skipped        int64   `json:"skipped"`
	Normal         int64   `json:"normal"`
	NormalBytes    int64   `json:"normal-bytes"`
	DirtyPagesRate int64   `json:"dirty-pages-rate"`
	MBps           float64 `json:"mbps"`
	DirtySyncCount int64   `json:"dirty-sync-count"`
	Postcopy       int64   `json:"postcopy-requests"`
	PageSize       int64   `json:"page-size"`
	MultifdBytes   int64   `json:"multifd-bytes"`
	PagesPerSecond int64   `json:"pages-per-second"`
}

func (m *Monitor) migration() (out migrationInfo) {
	in := m.job.Query()
	s := in.Session
	if s == nil {
		return out
	}
	out.Blocked = s.BlockedReasons
	switch in.State {
	case protect.Synchronising:
		out.Status = event.MigrationActive
		out.RAM = &migrationStats{
			Transferred: int64(s.Sync.Done), PageSize: ram.PageSize, DirtySyncCount: int64(s.Sync.Passes),
			MBps: s.Sync.Rate * 8 / 1e6, PagesPerSecond: int64(s.Sync.Rate / ram.PageSize),
		}
		if p := in.Progress; p != nil {
			out.RAM.Total, out.RAM.Remaining = int64(p.Total), int64(p.Remaining)
		}
		if d := s.Sync.ExpectedDowntime.Milliseconds(); d > 0 {
			out.ExpectedDown = &d
		}
	case protect.Following:
		if out.Status = event.MigrationCOLO; !whole(in) {
			out.Status = event.MigrationActive
		}
	case protect.Protected, protect.SwitchingOver, protect.Asking, protect.TakingOver:
		out.Status = event.MigrationCOLO
	}
	return out
}
