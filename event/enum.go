package event

import (
	"fmt"
	"slices"
)

// Mode is the role of one side of a session. (QAPI enum COLOMode.)
type Mode string

// The modes. The zero Mode prints and encodes as ModeNone.
const (
	ModeNone      Mode = "none"
	ModePrimary   Mode = "primary"
	ModeSecondary Mode = "secondary"
)

// ExitReason is why a session ended. (QAPI enum COLOExitReason.)
type ExitReason string

// The reasons. ExitNone and ExitProcessing are answers to query-colo-status
// and do not occur in an event. The zero ExitReason is ExitNone.
const (
	ExitNone       ExitReason = "none"
	ExitRequest    ExitReason = "request"    // a failover was requested on this side
	ExitError      ExitReason = "error"      // the link or a checkpoint failed
	ExitProcessing ExitReason = "processing" // a failover is under way
)

// Cause is why a checkpoint was made.
type Cause string

// The causes.
const (
	CauseInitial    Cause = "initial"    // the first synchronisation
	CauseTimer      Cause = "timer"      // the checkpoint delay ran out
	CauseDivergence Cause = "divergence" // the guests' outputs differ
	CauseRequest    Cause = "request"    // the host asked
	CauseLimit      Cause = "limit"      // a buffer is full
	CausePace       Cause = "pace"       // output waits of flows that are not compared
)

// SyncPhase is what the synchronisation of a disk is at.
type SyncPhase string

// The phases, in their order.
const (
	SyncCopy  SyncPhase = "copy"  // chunks are compared and sent
	SyncFlush SyncPhase = "flush" // all have been, and are being made stable
)

// MigrationStatus is QAPI's enum of the same name. Names that are not listed
// here are legal: QEMU gains some from time to time.
type MigrationStatus string

// The statuses that a COLO session passes through.
const (
	MigrationNone      MigrationStatus = "none"
	MigrationSetup     MigrationStatus = "setup"
	MigrationActive    MigrationStatus = "active"
	MigrationDevice    MigrationStatus = "device"
	MigrationCOLO      MigrationStatus = "colo"
	MigrationCompleted MigrationStatus = "completed"
	MigrationFailed    MigrationStatus = "failed"
	MigrationCancelled MigrationStatus = "cancelled"
)

// An EnumError reports a word that its enumeration does not have.
type EnumError struct {
	Enum string // the QAPI name of the enumeration
	Word string
}

func (e *EnumError) Error() string {
	return fmt.Sprintf("event: %q is no %s", e.Word, e.Enum)
}

// String returns the QAPI word.
func (m Mode) String() string { return orNone(string(m)) }

// MarshalText returns the QAPI word.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText accepts the QAPI words, and "unknown", which QEMU before 3.1
// had for none. Anything else is an [*EnumError].
func (m *Mode) UnmarshalText(text []byte) error {
	w, err := word(text, "COLOMode", string(ModeNone), string(ModePrimary), string(ModeSecondary))
	if err == nil {
		*m = Mode(w)
	}
	return err
}

// String returns the QAPI word.
func (r ExitReason) String() string { return orNone(string(r)) }

// MarshalText returns the QAPI word.
func (r ExitReason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText accepts the QAPI words, and "unknown", which the first
// proposals of the event had for none. Anything else is an [*EnumError].
func (r *ExitReason) UnmarshalText(text []byte) error {
	w, err := word(text, "COLOExitReason",
		string(ExitNone), string(ExitRequest), string(ExitError), string(ExitProcessing))
	if err == nil {
		*r = ExitReason(w)
	}
	return err
}

// UnmarshalText accepts the causes above. Anything else is an [*EnumError].
func (c *Cause) UnmarshalText(text []byte) error {
	w, err := word(text, "Cause", string(CauseInitial), string(CauseTimer),
		string(CauseDivergence), string(CauseRequest), string(CauseLimit), string(CausePace))
	if err == nil {
		*c = Cause(w)
	}
	return err
}

// UnmarshalText accepts the phases above. Anything else is an [*EnumError].
func (p *SyncPhase) UnmarshalText(text []byte) error {
	w, err := word(text, "SyncPhase", string(SyncCopy), string(SyncFlush))
	if err == nil {
		*p = SyncPhase(w)
	}
	return err
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func word(text []byte, enum string, known ...string) (string, error) {
	s := string(text)
	if s == "unknown" && slices.Contains(known, "none") {
		return "none", nil
	}
	if !slices.Contains(known, s) {
		return "", &EnumError{Enum: enum, Word: s}
	}
	return s, nil
}
