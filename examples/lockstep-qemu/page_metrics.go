package main

import (
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/standby"
)

// tally counts what has happened to a standby since it was started.
type tally struct {
	refused, forgotten, takeovers atomic.Uint64
	fits, misfits                 atomic.Uint64 // rehearsals
	committed                     atomic.Int64  // when the last checkpoint was, in ns since 1970; 0: there is none
	brought                       atomic.Int64  // from the last loss until the guest ran again, in ns; 0: it was not brought back
}

// age returns how old the last checkpoint is.
func (c *tally) age() (time.Duration, bool) {
	at := c.committed.Load()
	return time.Since(time.Unix(0, at)), at != 0
}

// metrics adds the metrics of a standby.
func (s *standbyRun) metrics(m *metrics.Set) {
	st := s.standing()
	gauge := func(name, help string, v float64) { m.Add(metrics.Gauge, "lockstep_standby_"+name, help, v) }
	count := func(name, help string, n uint64, labels ...metrics.Label) {
		m.Add(metrics.Counter, "lockstep_standby_"+name, help, float64(n), labels...)
	}
	gauge("waiting", "Whether a primary is waited for.", truth(st.Ready))
	gauge("session", "Whether there is a session with a primary, or one whose end is not settled.", truth(st.Session))
	gauge("guardian", "Whether the primary's guardian answers.", truth(st.Guardian))
	gauge("generation", "The generation of the copy that is here; 0 where nobody has told.", float64(st.Generation))
	gauge("gone_on", "Whether the guest was gone on with here.", truth(st.GoneOn))
	gauge("received_bytes", "What the primary of this session has sent.", float64(st.Bytes))
	if age, ok := s.tally.age(); ok {
		gauge("checkpoint", "The last whole checkpoint; 0 is the initial migration.", float64(st.Epoch))
		gauge("checkpoint_age_seconds", "How long ago the last whole checkpoint was.", age.Seconds())
	}
	if in, err := s.present.Load().Info(); err == nil {
		gauge("guest_bytes", "The guest's memory.", float64(in.RAM))
		gauge("guest_used_bytes", "The guest's memory that is not zeros only.", float64(in.Used))
		gauge("state_bytes", "The state of the guest's devices.", float64(in.State))
		gauge("staging_bytes", "The largest checkpoint so far, in memory.", float64(in.Staging))
	}
	addSecondaries(m, st.Secondaries)
	count("refused_total", "Connections that came to nothing.", s.tally.refused.Load())
	count("forgotten_total", "Copies that were not gone on with, by somebody's word.", s.tally.forgotten.Load())
	count("takeovers_total", "Guests that were gone on with here.", s.tally.takeovers.Load())
	const rehearsals = "Trials of the QEMU after --, by whether it has taken the guest."
	count("rehearsals_total", rehearsals, s.tally.fits.Load(), metrics.Label{Name: "result", Value: "fits"})
	count("rehearsals_total", rehearsals, s.tally.misfits.Load(), metrics.Label{Name: "result", Value: "failed"})
	s.recorder.AddTo(m)
}

// metrics adds the metrics of a guardian. Every state has a sample, 1 for the present one and
// 0 for all others: Prometheus would go on showing an earlier state that merely disappeared.
func (g *guardian) metrics(m *metrics.Set) {
	st := g.standing()
	gauge := func(name, help string, v float64, labels ...metrics.Label) {
		m.Add(metrics.Gauge, "lockstep_guardian_"+name, help, v, labels...)
	}
	for state := standby.Unprotected; state <= standby.Ended; state++ {
		gauge("state", "Whether the guest is in this state.", truth(st.State == state.String()), metrics.Label{Name: "state", Value: state.String()})
	}
	gauge("generation", "The generation of the guest that runs here.", float64(st.Generation))
	gauge("standby", "Whether the standby answers.", truth(st.Standby))
	gauge("checkpoint", "The last checkpoint that the standby has told of.", float64(st.Checkpoint))
	gauge("paused", "Whether an operator has stopped the guest.", truth(st.Paused))
	m.Add(metrics.Counter, "lockstep_guardian_rescues_total", "Times that the guest was told to run on without its standby.", float64(st.Rescued))
}
