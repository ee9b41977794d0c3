package qmp

import (
	"context"
	"slices"
)

// MigrationParameters is the parameter that COLO has in QEMU. A host that has
// more embeds it in a struct of its own.
type MigrationParameters struct {
	// XCheckpointDelay is the time between two checkpoints, milliseconds.
	XCheckpointDelay *uint32 `json:"x-checkpoint-delay,omitempty"`
}

// RegisterParameters adds migrate-set-parameters and query-migrate-parameters. P
// is a struct of pointers: get returns all parameters; set changes those that are not
// nil, or returns an error and changes none.
func RegisterParameters[P any](c *Commands, get func() P, set func(ctx context.Context, p P) error) {
	Register(c, "migrate-set-parameters", func(ctx context.Context, p P) (None, error) { return None{}, set(ctx, p) })
	Register(c, "query-migrate-parameters", func(context.Context, None) (P, error) { return get(), nil })
}

// MigrationCapability is a capability of QEMU 7.2. (QAPI enum of the same name.)
type MigrationCapability string

// CapabilityCOLO makes a QEMU go on with checkpoints where a migration would end. Both sides
// have to set it.
const CapabilityCOLO MigrationCapability = "x-colo"

// Words returns all of them, in QEMU's order.
func (MigrationCapability) Words() []string { return slices.Clone(migrationCapabilities) }

var migrationCapabilities = []string{
	"xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "compress", "events", "postcopy-ram", "x-colo", "release-ram",
	"block", "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps", "postcopy-blocktime",
	"late-block-activate", "x-ignore-shared", "validate-uuid", "background-snapshot", "zero-copy-send", "postcopy-preempt",
}

// CapabilityStatus is a capability and whether it is on.
type CapabilityStatus struct {
	Capability MigrationCapability `json:"capability"`
	State      bool                `json:"state"`
}

// RegisterCapabilities adds migrate-set-capabilities and
// query-migrate-capabilities. get returns those that the host has; set is called
// with one or more of them. A capability that QEMU has and the host lacks is shown as off,
// may be turned off, and is refused when a client turns it on.
func RegisterCapabilities(c *Commands, get func() []CapabilityStatus, set func(ctx context.Context, all []CapabilityStatus) error) {
	type args struct {
		Capabilities []CapabilityStatus `json:"capabilities"`
	}
	Register(c, "migrate-set-capabilities", func(ctx context.Context, a args) (None, error) {
		has := get()
		var mine []CapabilityStatus
		for _, s := range a.Capabilities {
			switch known := slices.ContainsFunc(has, func(h CapabilityStatus) bool { return h.Capability == s.Capability }); {
			case known:
				mine = append(mine, s)
			case s.State:
				return None{}, refuse("Capability '%s' is not supported", s.Capability)
			}
		}
		if len(mine) == 0 {
			return None{}, nil
		}
		return None{}, set(ctx, mine)
	})
	Register(c, "query-migrate-capabilities", func(context.Context, None) ([]CapabilityStatus, error) {
		has := get()
		all := make([]CapabilityStatus, 0, len(migrationCapabilities))
		for _, name := range migrationCapabilities {
			s := CapabilityStatus{Capability: MigrationCapability(name)}
			if i := slices.IndexFunc(has, func(h CapabilityStatus) bool { return h.Capability == s.Capability }); i >= 0 {
				s.State = has[i].State
			}
			all = append(all, s)
		}
		return all, nil
	})
}

// RegisterMigration adds query-migrate. Info is the type of its answer: a struct with members
// of MigrationInfo in QEMU's schema, of which all clients read "status"
// (event.MigrationStatus). An Info without members in its JSON means that there was no
// migration.
func RegisterMigration[Info any](c *Commands, info func() Info) {
	Register(c, "query-migrate", func(context.Context, None) (Info, error) { return info(), nil })
}
