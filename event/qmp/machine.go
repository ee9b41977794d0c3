package qmp

import "context"

// A Machine is a guest that can be stopped. Its methods may be called from any
// goroutine.
type Machine interface {
	// RunState is the guest's state, in QAPI's words: "running", "paused",
	// "inmigrate", "prelaunch", "colo", "shutdown", ... It runs in "running".
	RunState() string
	// Stop stops the guest that runs; it publishes event.Stop. An error says why
	// it cannot be done now.
	Stop(ctx context.Context) error
	// Cont lets the guest run that does not; it publishes event.Resume. An error
	// says why it cannot be done now: while a checkpoint is committed say.
	Cont(ctx context.Context) error
}

// statusInfo has its fields in QEMU's order, which tells in which order members
// of one bucket are printed.
type statusInfo struct {
	Running    bool   `json:"running"`
	SingleStep bool   `json:"singlestep"` // QEMU 7.2 says so; nothing here has it
	Status     string `json:"status"`
}

// RegisterMachine adds query-status, stop and cont. To stop what does not run
// and to let run what does is no error: the machine is not asked.
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

// RegisterName adds query-name, which answers the guest's name; an empty one is
// that it has none.
func RegisterName(c *Commands, name string) {
	Register(c, "query-name", func(context.Context, None) (nameInfo, error) { return nameInfo{name}, nil })
}

// nameInfo is the answer to query-name. (QAPI type NameInfo.)
type nameInfo struct {
	Name string `json:"name,omitempty"`
}
