package migrate

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// nic is a live device of one empty section that the guest must give up before it moves,
// and that hears of each connection after the first.
type nic struct {
	pending  atomic.Int32 // how often it still says that the guest has it
	prepared atomic.Int32
	refusals atomic.Int32 // how often it is not ready for that
}

func (n *nic) SaveSetup(*qemufile.Writer) error           { return nil }
func (n *nic) SaveIterate(*qemufile.Writer) (bool, error) { return true, nil }
func (n *nic) SaveComplete(*qemufile.Writer) error        { return nil }
func (n *nic) LoadState(*qemufile.Reader, uint32) error   { return nil }
func (n *nic) GuestUnplugPending() bool                   { return n.pending.Add(-1) >= 0 }
func (n *nic) ResumePrepare() error {
	n.prepared.Add(1)
	if n.refusals.Add(-1) >= 0 {
		return errors.New("not yet")
	}
	return nil
}

// withNIC registers a NIC at both ends of a migration.
func withNIC(t *testing.T, m *move) *nic {
	t.Helper()
	n := &nic{}
	e := vmstate.Entry{Name: "nic", Version: 1}
	check(t, m.src.state.RegisterLive(e, n, nil), m.dst.state.RegisterLive(e, nil, n))
	return n
}

func TestAGuestGoesWhenItHasGivenUpItsDevice(t *testing.T) {
	m := newMove(t, 5)
	n := withNIC(t, m)
	n.pending.Store(3)
	m.src.onPause = func(before func()) func() {
		return func() {
			if n.pending.Load() >= 0 {
				t.Error("the guest has its device when it is paused")
			}
			before()
		}
	}(m.src.onPause)
	m.run()
	m.arrived()
}

func TestAGuestThatKeepsItsDeviceRunsOnWhenTheConnectionBreaks(t *testing.T) {
	m := newMove(t, 5, cut(1, 0, false))
	n := withNIC(t, m)
	n.pending.Store(1 << 20)
	m.run()
	if running, _ := m.src.runs(); !running || m.srcErr == nil {
		t.Errorf("the guest runs: %v: %v", running, m.srcErr)
	}
}

func TestALiveDeviceIsAskedBeforePostcopyGoesOn(t *testing.T) {
	whole := newMove(t, 4)
	withNIC(t, whole)
	whole.hold = true
	whole.run()
	whole.arrived()
	broken := [2]colotest.Flow{{Break: colotest.Point{Op: colotest.Byte, N: whole.behind + 32}, Drop: true}}

	m := newMove(t, 4, broken)
	n := withNIC(t, m)
	m.hold = true
	m.run()
	m.arrived()
	if n.prepared.Load() != 1 {
		t.Errorf("asked %d times", n.prepared.Load())
	}

	// One that is not ready is asked again, on the next connection.
	m = newMove(t, 4, broken)
	n = withNIC(t, m)
	n.refusals.Store(1)
	m.hold = true
	m.run()
	m.arrived()
	if n.prepared.Load() != 2 {
		t.Errorf("asked %d times", n.prepared.Load())
	}
}
