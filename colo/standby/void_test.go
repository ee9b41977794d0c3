package standby_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
)

// A checkpoint counts when all of it was loaded and Flush has said so, and then once.
func TestACheckpointThatWasNotLoadedWholeIsNotCommitted(t *testing.T) {
	g := standby.New(standby.Config{})
	defer g.Close()
	void := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, standby.ErrVoid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	done := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	void("Flush of nothing", g.Flush())
	void("Commit of nothing", g.Commit())
	done(g.Read(qemufile.NewReader(bytes.NewReader(vector(t, "none-initial.bin")))))
	void("Commit of a guest that was read and so committed", g.Commit())
	memory, devices := liveSection(2, 0x08, filled(7)), vector(t, "none-checkpoint.bin")[4+5+8+5+1+12:]
	load := func() {
		t.Helper()
		r := new(qemufile.Reader)
		r.ResetBytes(memory)
		done(g.Load(r, refuse))
	}

	load()
	void("Flush without devices", g.Flush())
	void("Commit without devices", g.Commit())
	done(g.LoadDevices(devices, refuse))
	void("Commit without Flush", g.Commit())
	done(g.Flush())
	g.Discard()
	void("Commit of what was dropped", g.Commit())

	load()
	done(g.LoadDevices(devices, refuse))
	done(g.Flush())
	done(g.Commit())
	void("a second Commit", g.Commit())
	if in, err := g.Info(); err != nil || in.Epoch != 1 {
		t.Errorf("%+v, %v", in, err)
	}
}
