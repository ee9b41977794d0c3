package qmp_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a guest that does what it is told, as QEMU's -machine none does.
type host struct {
	bus *event.Bus

	mu       sync.Mutex
	state    string
	mode     event.Mode
	lost     int
	delay    uint32
	caps     []qmp.CapabilityStatus
	incoming bool
	jobs     []qmp.Job
	quits    int
}

func (h *host) RunState() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

func (h *host) set(state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = state
}

func (h *host) Stop(context.Context) error {
	h.set("paused")
	h.bus.Publish(event.Stop{})
	return nil
}

func (h *host) Cont(context.Context) error {
	if h.incoming {
		return nil
	}
	h.set("running")
	h.bus.Publish(event.Resume{})
	return nil
}

func (h *host) COLOStatus() (mode, last event.Mode, reason event.ExitReason) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mode, event.ModeNone, event.ExitNone
}

func (h *host) LostHeartbeat(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost++
	return nil
}

func (h *host) StartReplication(context.Context, bool) error { return nil }
func (h *host) StopReplication(context.Context, bool) error  { return nil }
func (h *host) CheckpointReplication(context.Context) error  { return nil }
func (h *host) ReplicationError() error                      { return nil }

type yankInstance struct {
	Type string `json:"type"`
	ID   string `json:"id,omitempty"`
}

// newHost returns a host and a server that offers all that it can do.
func newHost() (*host, *qmp.Server) {
	h := &host{bus: new(event.Bus), state: "running", caps: []qmp.CapabilityStatus{{Capability: qmp.CapabilityCOLO}, {Capability: "release-ram"}, {Capability: "compress"}, {Capability: "postcopy-ram"}}}
	c := new(qmp.Commands)
	qmp.RegisterName(c, "")
	qmp.RegisterMachine(c, h)
	qmp.RegisterCOLO(c, h)
	qmp.RegisterReplication(c, h)
	qmp.RegisterJobs(c, func() []qmp.Job { return h.jobs })
	qmp.RegisterMigration(c, func() qmp.None { return qmp.None{} })
	qmp.RegisterParameters(c, func() qmp.MigrationParameters {
		h.mu.Lock()
		defer h.mu.Unlock()
		return qmp.MigrationParameters{XCheckpointDelay: &h.delay}
	}, func(_ context.Context, p qmp.MigrationParameters) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if p.XCheckpointDelay != nil {
			h.delay = *p.XCheckpointDelay
		}
		return nil
	})
	qmp.RegisterCapabilities(c, func() []qmp.CapabilityStatus {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.caps
	}, func(context.Context, []qmp.CapabilityStatus) error { return nil })

	// Commands of the host's own, which QEMU has too.
	qmp.RegisterOOB(c, "query-yank", func(context.Context, qmp.None) ([]yankInstance, error) {
		return []yankInstance{{"chardev", "compat_monitor0"}}, nil
	})
	qmp.RegisterOOB(c, "migrate-pause", func(context.Context, qmp.None) (qmp.None, error) {
		return qmp.None{}, errors.New("migrate-pause is currently only supported during postcopy-active state")
	})
	qmp.RegisterOOB(c, "migrate-recover", func(context.Context, struct {
		URI string `json:"uri"`
	}) (qmp.None, error) {
		return qmp.None{}, errors.New("Migrate recover can only be run when postcopy is paused.")
	})
	qmp.RegisterOOB(c, "yank", func(_ context.Context, a struct {
		Instances []yankInstance `json:"instances"`
	}) (qmp.None, error) {
		if len(a.Instances) > 0 {
			return qmp.None{}, &qmp.Error{Class: qmp.DeviceNotFound, Desc: "Instance not found"}
		}
		return qmp.None{}, nil
	})
	qmp.Register(c, "echo", func(_ context.Context, a struct {
		ID int `json:"id"`
	}) (any, error) {
		return a, nil
	})
	qmp.Register(c, "device_del", func(_ context.Context, a struct {
		ID string `json:"id"`
	}) (qmp.None, error) {
		return qmp.None{}, &qmp.Error{Class: qmp.DeviceNotFound, Desc: "Device '" + a.ID + "' not found"}
	})
	qmp.Register(c, "balloon", func(context.Context, struct {
		Value int64 `json:"value"`
	}) (qmp.None, error) {
		return qmp.None{}, &qmp.Error{Class: qmp.DeviceNotActive, Desc: "No balloon device has been activated"}
	})
	qmp.Register(c, "system_reset", func(context.Context, qmp.None) (qmp.None, error) {
		h.bus.Publish(event.Reset{Reason: event.ShutdownHostSystemReset})
		return qmp.None{}, nil
	})
	return h, &qmp.Server{Commands: c, Bus: h.bus, Version: qmp.Version{Major: 7, Minor: 2, Micro: 22, Package: "Debian 1:7.2+dfsg-7+deb12u18+b2"}, Quit: func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.quits++
	}}
}
