package event

import "fmt"

// Mode is the role of one side of a session. (QAPI enum COLOMode.)
type Mode string

// The modes. The zero Mode prints and encodes as ModeNone.
const (
	ModeNone      Mode = "none"
	ModePrimary   Mode = "primary"
	ModeSecondary Mode = "secondary"
)

// ExitReason says why a session ended. (QAPI enum COLOExitReason.)
type ExitReason string

// The reasons. ExitNone and ExitProcessing are answers to query-colo-status
// and do not occur in an event. The zero ExitReason is ExitNone.
const (
	ExitNone       ExitReason = "none"
	ExitRequest    ExitReason = "request"    // a failover or an end was requested on this side (also by the end of Run's context), or a switchover on either
	ExitError      ExitReason = "error"      // the link or a checkpoint failed
	ExitProcessing ExitReason = "processing" // a failover is under way
)

// Cause says why a checkpoint was made.
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

// SyncPhase is the phase that the synchronisation of a disk is in.
type SyncPhase string

// The phases, in their order.
const (
	SyncCopy  SyncPhase = "copy"  // chunks are compared and sent
	SyncFlush SyncPhase = "flush" // all have been, and are being made stable
)

// MigrationStatus is the state of a migration. (QAPI enum of the same name.) Names
// that are not listed here are legal: QEMU gains some from time to time.
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

// An EnumError reports a text that can be no word of its enumeration: it is
// empty, or has other characters than letters, digits, - and _.
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

// UnmarshalText accepts any word, and "unknown", which QEMU before 3.1 had, for
// none. What is no word is an [*EnumError].
func (m *Mode) UnmarshalText(text []byte) error { return unmarshal(m, text, "COLOMode", ModeNone) }

// String returns the QAPI word.
func (r ExitReason) String() string { return orNone(string(r)) }

// MarshalText returns the QAPI word.
func (r ExitReason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText accepts any word, and "unknown", which the first proposals of
// the event had, for none. What is no word is an [*EnumError].
func (r *ExitReason) UnmarshalText(text []byte) error {
	return unmarshal(r, text, "COLOExitReason", ExitNone)
}

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (c *Cause) UnmarshalText(text []byte) error { return unmarshal(c, text, "Cause", "unknown") }

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (p *SyncPhase) UnmarshalText(text []byte) error {
	return unmarshal(p, text, "SyncPhase", "unknown")
}

// MarshalText returns the word, and "unknown" for the zero value, so that
// UnmarshalText can read every answer.
func (a ArbiterAnswer) MarshalText() ([]byte, error) {
	if a == "" {
		return []byte("unknown"), nil
	}
	return []byte(a), nil
}

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (a *ArbiterAnswer) UnmarshalText(text []byte) error {
	return unmarshal(a, text, "ArbiterAnswer", "unknown")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// unmarshal keeps a word, known here or not: QEMU gains some from time to time.
func unmarshal[T ~string](to *T, text []byte, enum string, unknown T) error {
	for _, c := range text {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return &EnumError{Enum: enum, Word: string(text)}
		}
	}
	switch len(text) {
	case 0:
		return &EnumError{Enum: enum}
	default:
		if *to = T(text); *to == "unknown" {
			*to = unknown
		}
	}
	return nil
}

// word is unmarshal for an enumeration in which "unknown" is a word, or none.
func word[T ~string](to *T, text []byte, enum string) error {
	return unmarshal(to, text, enum, "unknown")
}
