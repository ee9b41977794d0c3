package qmp

import "context"

// A Machine is a guest that can be stopped. Its methods may be called from any
// goroutine.
type Machine interface {
	// RunState returns the state of the guest by its QAPI name: "running", "paused",
	// "inmigrate", "prelaunch", "colo", "shutdown", ... The guest runs in "running" alone.
	RunState() string
	// Stop stops the guest, which runs, and publishes event.Stop. An error says why
	// it cannot be stopped now.
	Stop(ctx context.Context) error
	// Cont lets the guest, which does not run, go on, and publishes event.Resume. An
	// error says why it cannot run now: because a checkpoint is committed, say.
	Cont(ctx context.Context) error
}

// statusInfo has its fields in QEMU's order, which tells in which order members
// of one bucket are printed.
type statusInfo struct {
	Running    bool   `json:"running"`
	SingleStep bool   `json:"singlestep"` // QEMU 7.2 says so; nothing here has it
	Status     string `json:"status"`
}

// RegisterMachine adds query-status, stop and cont. It is no error to stop a guest that
// does not run, or to continue one that runs: Stop and Cont are not called then.
func RegisterMachine(c *Commands, m Machine) {
	Register(c, "query-status", func(context.Context, None) (statusInfo, error) {
		state := m.RunState()
		return statusInfo{Status: state, Running: state == "running"}, nil
	})
	Register(c, "stop", func(ctx context.Context, _ None) (None, error) {
		if m.RunState() != "running" {
			return None{}, nil
		}
		return None{}, m.Stop(ctx)
	})
	Register(c, "cont", func(ctx context.Context, _ None) (None, error) {
		if m.RunState() == "running" {
			return None{}, nil
		}
		return None{}, m.Cont(ctx)
	})
}

// RegisterName adds query-name, which answers the name of the guest; empty means that it
// has none.
func RegisterName(c *Commands, name string) {
	Register(c, "query-name", func(context.Context, None) (nameInfo, error) { return nameInfo{name}, nil })
}

// nameInfo is the answer to query-name. (QAPI type NameInfo.)
type nameInfo struct {
	Name string `json:"name,omitempty"`
}
