package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A host whose clock runs at another rate is a host to which each time that it is told lasts longer
// or shorter: it is configured with times of its own, and so are the terms that it reads in the
// arbiter's record and in what its peer says. What the two say to each other is counted by a clock
// that runs at the rate 1.

// withinMargin is by how much the rates of two clocks differ at most, that failover.Margin covers.
const withinMargin = 1 / 0.98

// chooseRates gives each host's clock a rate.
func (s *simulation) chooseRates(draw *rand.Rand) {
	least := 0.9 + 0.2*draw.Float64()
	s.rates = map[string]float64{}
	for _, name := range s.names {
		s.rates[name] = least * (1 + (withinMargin-1)*draw.Float64())
	}
	// The two that differ most are as far apart as the margin allows.
	fast := draw.IntN(len(s.names))
	s.rates[s.names[fast]] = least * withinMargin
	s.rates[s.names[(fast+1)%len(s.names)]] = least
}

// rate is how fast the host's clock runs.
func (h *host) rate() float64 {
	if h == nil || h.w.rates == nil {
		return 1
	}
	return h.w.rates[h.name]
}

// lasts returns how long a time is that the host is told.
func (h *host) lasts(d time.Duration) time.Duration { return time.Duration(float64(d) / h.rate()) }

// byItsClock gives a host the times of its configuration as its clock measures them.
func (h *host) byItsClock(c *Config) {
	if h.w.rates == nil {
		return
	}
	term := c.Term
	for _, of := range []struct {
		d  *time.Duration
		by time.Duration // which it is where it is not set
	}{
		{&c.Term, 0}, {&c.Lost, DefaultLost}, {&c.CheckpointDelay, DefaultCheckpointDelay},
		{&c.CheckpointTimeout, 0}, {&c.PeerTimeout, 0},
	} {
		if *of.d == 0 {
			*of.d = of.by
		}
		*of.d = h.lasts(*of.d)
	}
	h.terms = map[time.Duration]time.Duration{c.Term: term}
}

// read returns a record that the arbiter has as the host reads it.
func (h *host) read(r failover.Record) failover.Record {
	if h.w.rates == nil {
		return r
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	here := h.lasts(r.Term)
	h.terms[here] = r.Term
	r.Term = here
	return r
}

// written returns a record of the host as the arbiter has it.
func (h *host) written(r failover.Record) failover.Record {
	if h.w.rates == nil {
		return r
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Term = h.terms[r.Term]
	return r
}

// Changed implements failover.Store.
func (s ofHost) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	r, err := s.Store.Changed(ctx, s.h.written(seen))
	return s.h.read(r), err
}

// translated returns what a host says to another, if that says how long something lasts, as the
// other measures that; nil: it does not say so.
func translated(p []byte, from, to *host) []byte {
	if from.rate() == to.rate() || len(p) < 2 || int(binary.BigEndian.Uint16(p)) != len(p)-2 {
		return nil
	}
	var n note
	if json.Unmarshal(p[2:], &n) != nil || n.TermNS == 0 {
		return nil
	}
	n.TermNS = int64(float64(n.TermNS) * from.rate() / to.rate())
	var b bytes.Buffer
	writeNote(&b, n)
	return b.Bytes()
}
