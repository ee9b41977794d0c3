package protect

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// early says how the hosts of a simulation send memory between checkpoints.
type early struct {
	share float64
	sent  atomic.Int64 // pieces
}

// sendsEarly has the hosts send memory early in one seed of three. Seeds that are kept do
// as before.
func (s *simulation) sendsEarly(seed uint64) {
	if !slices.Contains(keptSeeds, seed) && rand.New(rand.NewPCG(seed, 5)).IntN(3) == 0 {
		s.early.share = 0.5
	}
}

// hears is a host's SessionConfig.Trace.
func (e *early) hears(_ event.Mode, dir string, m colo.Message, _ uint64) {
	if dir == ">" && m == colo.EarlyPages {
		e.sent.Add(1)
	}
}
