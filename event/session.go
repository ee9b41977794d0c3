package event

// Only this library has these events of the end of a session: QEMU publishes COLO_EXIT
// and no more.

// ArbiterAnswer is the state of a question to an arbiter.
type ArbiterAnswer string

// The answers.
const (
	ArbiterAsked       ArbiterAnswer = "asked"       // the question is under way
	ArbiterGranted     ArbiterAnswer = "granted"     // this side goes on
	ArbiterRefused     ArbiterAnswer = "refused"     // the other side does, for good
	ArbiterUnreachable ArbiterAnswer = "unreachable" // nobody answered; it is asked again
)

// Arbitration says that the arbiter is asked who goes on, and what it answers. A host of
// package colo/protect also publishes it when its grant cannot be renewed or its first
// claim cannot be made (unreachable, once), and again when that has succeeded (granted).
type Arbitration struct {
	Mode    Mode          `json:"mode"`
	Epoch   uint64        `json:"epoch"`   // the last checkpoint of the side that asks
	Ordered bool          `json:"ordered"` // a failover or a switchover was ordered on this side
	Answer  ArbiterAnswer `json:"answer"`
	Error   string        `json:"error,omitempty"` // why the session ended (asked), or the arbiter's error

	// Released: this side is refused because it has given the guest to the other
	// by an order (a switchover), or because the other side has ended the protection by
	// one. Nothing has failed.
	Released bool `json:"released,omitempty"`
}

// Name returns "ARBITRATION".
func (Arbitration) Name() string { return "ARBITRATION" }

// HeartbeatLost says that the host has reported the peer as lost (Lost of a
// session), and with which reason.
type HeartbeatLost struct {
	Mode  Mode   `json:"mode"`
	Epoch uint64 `json:"epoch"`
	Error string `json:"error"`
}

// Name returns "HEARTBEAT_LOST".
func (HeartbeatLost) Name() string { return "HEARTBEAT_LOST" }

// ProtectionRefused says that an attempt to protect the guest has failed before the secondary
// had the guest, and why. The guest runs on as before, unprotected. In package colo/protect a
// host publishes it in three more cases, once for each reason: the host seeks the other, and
// one of the two refuses the other for longer than a second; its own devices or networks keep
// it from a session; or it waits, and turns away a host that does not fit.
type ProtectionRefused struct {
	Mode  Mode   `json:"mode"`
	Error string `json:"error"`
}

// Name returns "PROTECTION_REFUSED".
func (ProtectionRefused) Name() string { return "PROTECTION_REFUSED" }

// ProtectionEnded says that the session was ended on purpose: the primary's
// guest runs on unprotected, the secondary's does not go on. An attempt to protect the guest that is given up, by an
// order or as its context ends, is told so, too, and not by ProtectionRefused.
type ProtectionEnded struct {
	Mode   Mode   `json:"mode"` // the side that says so
	By     Mode   `json:"by"`   // the side on which the end was ordered
	Epoch  uint64 `json:"epoch"`
	Reason string `json:"reason,omitempty"` // why it was ordered, in words
}

// Name returns "PROTECTION_ENDED".
func (ProtectionEnded) Name() string { return "PROTECTION_ENDED" }

// GuestTorn says that a commit has failed half way: the guest on this side is a mixture
// of two states, and never runs again.
type GuestTorn struct {
	Mode  Mode   `json:"mode"`
	Epoch uint64 `json:"epoch"` // of the checkpoint that was not committed
	Error string `json:"error"`
}

// Name returns "GUEST_TORN".
func (GuestTorn) Name() string { return "GUEST_TORN" }

// OutputStalled says that a checkpoint has taken longer than CheckpointTimeout,
// so that output was held for too long, and that the primary gives its secondary
// up.
type OutputStalled struct {
	Mode  Mode   `json:"mode"`
	Epoch uint64 `json:"epoch"`  // the number of the checkpoint
	AgeNS int64  `json:"age-ns"` // since it began, nanoseconds
	Step  string `json:"step"`   // the step that it is in, as the comment of package colo names it
}

// Name returns "OUTPUT_STALLED".
func (OutputStalled) Name() string { return "OUTPUT_STALLED" }

// Throttled says that the guest's vCPUs are kept from running for a share of the
// time, because it dirties memory faster than it can be sent.
type Throttled struct {
	Mode    Mode `json:"mode"`
	Percent int  `json:"percent"` // of the time, 0 to 99; 0: no more
}

// Name returns "THROTTLED".
func (Throttled) Name() string { return "THROTTLED" }
