package watch

import (
	"net/http"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/protect"
)

// metrics answers the request of a Prometheus.
func (p *Page) metrics(w http.ResponseWriter, _ *http.Request) {
	var s metrics.Set
	in := p.cfg.Job.Query()
	AddJob(&s, in)
	if l := p.latency(); l != nil {
		metrics.AddOutputLatency(&s, in.Guest, "", l)
	}
	p.counts.AddTo(&s)
	if p.cfg.Metrics != nil {
		p.cfg.Metrics(&s)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if _, err := s.WriteTo(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// AddJob adds what the Query of a Job has returned, with the figures of its present session, of
// which metrics.AddInfo is told. It is for a host that writes the figures of all of its guests
// from a handler of its own: a [Page] has those of one guest. Every state has a sample, 1 for the
// present one and 0 for all others: Prometheus would go on showing an earlier state that merely
// disappeared.
func AddJob(s *metrics.Set, in protect.Info) {
	who := []metrics.Label{{Name: "guest", Value: in.Guest}, {Name: "host", Value: in.Host}}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for st := protect.Created; st <= protect.Concluded; st++ {
		s.Add(metrics.Gauge, "lockstep_protection_state", "Whether the job is in this state.", truth(st == in.State), append(who[:2:2], metrics.Label{Name: "state", Value: st.String()})...)
	}
	s.Add(metrics.Gauge, "lockstep_protection_generation", "The generation that this host holds or has followed.", float64(in.Generation), who...)
	s.Add(metrics.Gauge, "lockstep_protection_open", "Whether this host may act for the guest now.", truth(in.Open), who...)
	s.Add(metrics.Counter, "lockstep_protection_takeovers_total", "Times that this host went on in the place of a lost primary.", float64(in.Stats.Takeovers), who...)
	s.Add(metrics.Counter, "lockstep_protection_switchovers_total", "Times that this host gave the guest to the other.", float64(in.Stats.Switchovers), who...)
	s.Add(metrics.Gauge, "lockstep_protection_switchover_downtime_seconds", "How long the guest stood still in the last switchover from here.", in.Stats.Downtime.Seconds(), who...)
	if in.Session != nil {
		metrics.AddInfo(s, in.Guest, *in.Session)
	}
}
