package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/oracle"
	"github.com/gocolo/lockstep/internal/wait"
)

// sent holds, for each vCPU, the last round whose frame the network has taken here.
type sent [guest.MaxVCPUs]atomic.Uint64

// note takes what the guest has sent, and was taken.
func (s *sent) note(packet []byte) {
	if f, err := guest.ParseFrame(packet); err == nil {
		s[f.VCPU].Store(f.N)
	}
}

// runsOn is the time for which a guest that is to stop runs on to send what it remembers.
const runsOn = time.Millisecond

// pauseSettled pauses the guest in a moment in which the frames of all rounds that it
// remembers were taken, and returns the histories of its vCPUs. A round is remembered before
// its frame is sent, and what the network refuses for the moment, because its sides are about
// to change, say, is offered again when the guest runs.
func (s *sent) pauseSettled(ctx context.Context, m machine, vcpus int) ([]oracle.History, error) {
	for {
		if err := m.Pause(ctx); err != nil {
			return nil, err
		}
		histories, err := oracle.Remembered(m.Memory(), vcpus)
		if err != nil || s.settled(histories) {
			return histories, err
		}
		if err := m.Resume(ctx); err != nil {
			return nil, err
		}
		if err := wait.For(ctx, runsOn); err != nil {
			return nil, err
		}
	}
}

func (s *sent) settled(histories []oracle.History) bool {
	for i, h := range histories {
		if last := h.Last(); last > 0 && s[i].Load() != last {
			return false
		}
	}
	return true
}
