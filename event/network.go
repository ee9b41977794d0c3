package event

import "time"

// Only this library has events of a compared network. QEMU's colo-compare has
// traces alone.

// A Flow names packets from one address to another.
type Flow struct {
	Source      string `json:"source"`         // address and port; port 0: it has none
	Destination string `json:"destination"`    // address and port, as of Source
	Protocol    uint8  `json:"protocol"`       // IANA's number
	VLAN        uint16 `json:"vlan,omitempty"` // the innermost; 0: untagged
}

// HeldOutput is output of a guest that waits for its checkpoint, or for the other
// guest to say the same. It is no event: a colo.OutputHolder returns it.
type HeldOutput struct {
	Packets int           `json:"packets"`
	Bytes   int64         `json:"bytes"`  // of these packets
	Age     time.Duration `json:"age-ns"` // of the oldest of them; 0: there is none
}

// NetworkDiverged says that the guests' packets of a flow differ, and that a
// checkpoint is asked for. It is published once for a flow in an epoch.
type NetworkDiverged struct {
	Flow    Flow   `json:"flow"`
	Reason  string `json:"reason"`            // a compare.Reason: "data", "position", "packet", ...
	Omitted uint64 `json:"omitted,omitempty"` // events of this name that were left out before this one, since they are too many
}

// Name returns "NETWORK_DIVERGED".
func (NetworkDiverged) Name() string { return "NETWORK_DIVERGED" }

// NetworkFlowApart says that the guests never agree about a flow, since what they
// say of it is random. It is not compared for a while; its output leaves with the
// checkpoints.
type NetworkFlowApart struct {
	Flow    Flow   `json:"flow"`
	Reason  string `json:"reason"`   // what the last divergence was; "none": its service is known for it
	RetryNS int64  `json:"retry-ns"` // after how long it is compared again, nanoseconds
	Omitted uint64 `json:"omitted,omitempty"`
}

// Name returns "NETWORK_FLOW_APART".
func (NetworkFlowApart) Name() string { return "NETWORK_FLOW_APART" }

// NetworkFlowTogether says that a flow is compared again, to see whether the
// guests agree about it now.
type NetworkFlowTogether struct {
	Flow    Flow   `json:"flow"`
	Omitted uint64 `json:"omitted,omitempty"`
}

// Name returns "NETWORK_FLOW_TOGETHER".
func (NetworkFlowTogether) Name() string { return "NETWORK_FLOW_TOGETHER" }
