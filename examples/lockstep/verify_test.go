package main

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// needTracker skips the test where the kernel keeps no log.
func needTracker(t *testing.T) {
	t.Helper()
	tr, err := ram.NewTracker(nil)
	require.Granted(t, require.Userfaultfd, err)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTheDirtyLogOfEitherBackendLacksNothing(t *testing.T) {
	t.Parallel()
	needTracker(t)
	for _, backend := range []string{"sim", "kvm"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			if backend == "kvm" {
				require.Usable(t, require.KVM, kvm.Probe)
			}
			s, _ := summed(t, append(short, "-backend", backend, "-disk", "1M", "-verify-dirty")...)
			if s.Lost+s.Contradicted+s.Corrupted != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Between two sessions the log stays on, and the next begins with what it says.
func TestTheDirtyLogOfAGuestThatChangesHostsLacksNothing(t *testing.T) {
	t.Parallel()
	needTracker(t)
	s, _ := summed(t, "-backend", "sim", "-disk", "0", "-failovers", "1", "-switchover", "1", "-term", "400ms", "-verify-dirty", "-early-resume=false")
	if s.Lost+s.Contradicted+s.Corrupted != 0 || s.Failovers != 1 || s.Switchovers != 1 {
		t.Errorf("%+v %+v", s, s.SeriesFigures)
	}
}

func TestADeviceThatDoesNotMarkWhatItWritesIsNamed(t *testing.T) {
	needTracker(t)
	p := guest.Params{VCPUs: 1, Pages: 16, Touch: 2, Seed: 1}
	var missed []uint64
	cfg := trial.SideConfig{
		Side: trial.Primary, Guest: p, Memory: p.MemSize(), VerifyDirty: true,
		Missed: func(block string, offset uint64) {
			if block != colotest.Block {
				t.Errorf("block %q", block)
			}
			missed = append(missed, offset)
		},
	}
	m, err := newSimMachine(cfg, true, func([]byte) error { return nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	hosted, err := newGuest(cfg, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hosted.Close()
	saver := ram.NewSaver(hosted.Blocks(), hosted, ram.SaverConfig{}) // a job's
	if err := hosted.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := errors.Join(m.Resume(ctx), m.(*simMachine).Step(5), m.Pause(ctx)); err != nil {
		t.Fatal(err)
	}
	m.Memory()[3*ram.PageSize]++
	if _, err := saver.Capture(); err != nil {
		t.Fatal(err)
	}
	if want := []uint64{3 * ram.PageSize}; !slices.Equal(missed, want) {
		t.Errorf("named %#x, want %#x", missed, want)
	}
}
