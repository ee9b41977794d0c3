package main

import (
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

func TestAGuestOutlivesEachOfItsHostsAndIsProtectedAgain(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{
		"short":      "-backend sim -failovers 1 -switchover 1 -disk 0",
		"compared":   "-backend sim -failovers 1 -switchover 1",
		"continuous": "-backend sim -failovers 1 -switchover 1 -mode continuous -vcpus 2 -vlan 7",
		"kvm":        "-backend kvm -failovers 1 -switchover 1",
	} {
		t.Run(name, func(t *testing.T) {
			if name != "short" && !*long {
				t.Skip("-long was not given")
			}
			if name == "kvm" {
				require.Usable(t, require.KVM, kvm.Probe)
			}
			t.Parallel() // they wait for the arbiter, most of the time
			s, lines := summed(t, strings.Fields(args)...)
			f := s.SeriesFigures
			if s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 || s.Inputs < 3 ||
				(s.DiskBlocks == 0) != (name == "short") || s.DiskLost+s.DiskCorrupted != 0 {
				t.Errorf("%+v %+v", s, s.DiskFigures)
			}
			changes := 0
			for _, l := range lines {
				if strings.HasPrefix(l, `{"change":`) {
					changes++
				}
			}
			if f.Failovers != 1 || f.Switchovers != 1 || changes != 2 || f.DowntimeP50 <= 0 || f.AgainP50 <= 0 {
				t.Errorf("%d changes: %+v", changes, f)
			}
			for _, key := range strings.Fields("failovers switchovers unplanned failover_downtime_ms_p50 failover_downtime_ms_p99 switchover_downtime_ms_p50 switchover_downtime_ms_p99 protected_again_ms_p50 protected_again_ms_p99") {
				if !strings.Contains(lines[len(lines)-1], `"`+key+`":`) {
					t.Errorf("the summary has no %s", key)
				}
			}
		})
	}
}

// A host that was stopped for longer than it may act for the guest says nothing more when it is
// woken, but for the one frame that it may have been about to write, having asked; and it
// protects the other.
func TestAHostThatIsStoppedPastItsTermSaysNothingNewAndFollows(t *testing.T) {
	t.Parallel()
	s, _ := summed(t, "-backend", "sim", "-failovers", "1", "-signal", "stop", "-lost-after", "2s")
	if s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 || s.SeriesFigures.Failovers != 1 || s.LateFigures.LateFrames > 1 {
		t.Errorf("%+v %+v %+v", s, s.SeriesFigures, s.LateFigures)
	}
}
