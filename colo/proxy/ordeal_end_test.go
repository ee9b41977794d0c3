package proxy_test

import (
	"slices"
	"time"
)

// calm has all come to an end: nothing is lost any more, and no stranger speaks.
func (o *ordeal) calm() {
	o.note("calm")
	if o.p == nil {
		o.promoted()
	}
	for o.step != 0 && o.wrong == "" {
		o.checkpoint()
	}
	o.lossy = false
	for _, h := range []*ordealHost{o.p, o.s} {
		h.mu.Lock()
		h.full = false
		h.mu.Unlock()
	}
	over := func() bool {
		return !slices.ContainsFunc(o.clients, func(c *ordealClient) bool {
			called := o.p.g.conns[c.port].dialed || o.s.g.conns[c.port].dialed
			return !c.over() && (!c.back || c.asks || called)
		})
	}
	for round := 0; !over() && o.wrong == ""; round++ {
		o.note("round %d", round)
		if round == 150 {
			for _, c := range o.clients {
				o.note("%+v", *c)
				o.note("%+v", o.p.g.conns[c.port])
				o.note("%+v", o.s.g.conns[c.port])
			}
			o.note("%d wait to arrive, P takes %d, S %d", len(o.p.in), len(o.p.g.inbox), len(o.s.g.inbox))
			o.fail("it comes to no end: %+v, %+v", o.prim.Stats(), o.sec.Stats())
			return
		}
		for _, c := range o.clients {
			if !c.over() {
				o.speaks(c, round%2 == 0)
			}
		}
		for range 12 {
			o.works(o.p, true)
			if o.mode != "continuous" {
				o.works(o.s, true)
			}
		}
		time.Sleep(50 * time.Millisecond)
		o.settle()
		o.p.mu.Lock()
		asked := o.p.asked
		o.p.mu.Unlock()
		if asked {
			o.asks++
		}
		if asked || o.mode == "continuous" || round%40 == 39 {
			for o.checkpoint(); o.step != 0 && o.wrong == ""; o.checkpoint() {
			}
		}
	}
	for o.checkpoint(); o.step != 0 && o.wrong == ""; o.checkpoint() {
	}
	if s := o.prim.Stats(); s.Held != 0 || s.HeldBytes != 0 || s.Queued != 0 {
		o.fail("it keeps %+v", s)
	}
}

// close ends all of it.
func (o *ordeal) close() {
	o.disconnect()
	for _, h := range []*ordealHost{o.p, o.s} {
		if h != nil {
			h.dies()
		}
	}
}
