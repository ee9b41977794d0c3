package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

type machine struct {
	bus   *event.Bus
	state string // of the server's one client
}

func (m *machine) RunState() string { return m.state }
func (m *machine) Stop(context.Context) error {
	m.state = "paused"
	m.bus.Publish(event.Stop{})
	return nil
}
func (m *machine) Cont(context.Context) error {
	m.state = "running"
	m.bus.Publish(event.Resume{})
	return errors.New("not now")
}

func TestAClientOfGoQEMUSteersAHost(t *testing.T) {
	path := filepath.Join(socket.Dir(t), "s")
	l, err := qmp.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	var bus event.Bus
	var c qmp.Commands
	qmp.RegisterMachine(&c, &machine{&bus, "running"})
	s := qmp.Server{Commands: &c, Bus: &bus}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()

	m, err := goqemu.NewSocketMonitor("unix", path, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	defer m.Disconnect()
	events, err := m.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan string, 10) // it reads no answer while an event waits
	go func() {
		for e := range events {
			stopped <- e.Event
		}
	}()
	answer, err := m.Run([]byte(`{"execute":"query-status"}`))
	var status struct {
		Return struct{ Status string }
	}
	if err != nil || json.Unmarshal(answer, &status) != nil || status.Return.Status != "running" {
		t.Errorf("%s, %v", answer, err)
	}
	if _, err := m.Run([]byte(`{"execute":"stop"}`)); err != nil {
		t.Error(err)
	}
	if e := <-stopped; e != "STOP" {
		t.Errorf("event %q", e)
	}
	if _, err := m.Run([]byte(`{"execute":"cont"}`)); err == nil || err.Error() != "not now" {
		t.Errorf("what the host refuses: %v", err)
	}
	if _, err := m.Run([]byte(`{"execute":"no-such"}`)); err == nil {
		t.Error("a command that is not there is executed")
	}
}
