package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// An ordealHost is a guest with its NIC and its network.
type ordealHost struct {
	o   *ordeal
	g   *ordealGuest
	in  chan []byte
	end chan struct{}
	ran chan error
	ctx context.Context // of Run
	off context.CancelFunc

	mu     sync.Mutex
	paused bool
	full   bool
	took   [][]byte // by the NIC
	out    [][]byte // by the network
	closed bool
	asked  bool      // for a checkpoint
	way    ordealWay // of the guest that runs here, whichever it is a copy of
	reg    vmstate.Registry
}

func (h *ordealHost) Pause(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paused = true
	return nil
}

func (h *ordealHost) Resume(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paused = false
	return nil
}

func (h *ordealHost) deliver(f []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.paused {
		h.o.t.Error("a packet is delivered to a guest that stands still")
	}
	if h.full {
		return errors.New("ring full")
	}
	h.took = append(h.took, bytes.Clone(f))
	return nil
}

func (h *ordealHost) ReadPacket() ([]byte, error) {
	select {
	case f := <-h.in:
		return f, nil
	case <-h.end:
		return nil, io.EOF
	}
}

func (h *ordealHost) WritePacket(f []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	h.out = append(h.out, bytes.Clone(f))
	return nil
}

func (h *ordealHost) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.end)
	}
	return nil
}

// dies ends Run.
func (h *ordealHost) dies() {
	h.off()
	<-h.ran
}

func (o *ordeal) newHost(g *ordealGuest) *ordealHost {
	o.hosts++
	if g == nil {
		g = &ordealGuest{conns: map[uint16]ordealConn{}, clock: 1000}
	}
	way := usualWay
	if o.way != nil {
		way = o.way(o.hosts)
	}
	g.way = way
	ctx, cancel := context.WithCancel(o.t.Context())
	return &ordealHost{o: o, g: g, ctx: ctx, off: cancel, way: way, in: make(chan []byte, 4096), end: make(chan struct{}), ran: make(chan error, 1)}
}

// lead begins with the first host.
func (o *ordeal) lead() {
	h := o.newHost(nil)
	h.g.seed = o.r.Uint32()
	o.p = h
	o.prim = proxy.NewPrimary(o.primaryConfig(h))
	o.must(h.reg.Register(o.prim.Entry(0), o.prim))
	p := o.prim
	go func() { h.ran <- p.Run(h.ctx, h) }()
	o.protect()
}

func (o *ordeal) primaryConfig(h *ordealHost) proxy.PrimaryConfig {
	return proxy.PrimaryConfig{
		VM: h, Deliver: h.deliver, VNetHdr: o.vnet, Limit: 1 << 20,
		Continuous: o.mode == "continuous", CompareAlways: o.mode == "always",
		Compare:           compare.Config{Strict: o.mode == "strict"},
		RequestCheckpoint: func(event.Cause) { h.mu.Lock(); defer h.mu.Unlock(); h.asked = true },
	}
}

// protect gives the guest another host, and makes the first checkpoint.
func (o *ordeal) protect() {
	o.note("protect")
	h := o.newHost(nil)
	o.s = h
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: h, Deliver: h.deliver, VNetHdr: o.vnet, Limit: 1 << 20, Continuous: o.mode == "continuous",
		Rewriter: filter.RewriterConfig{Strict: o.mode == "strict"}})
	h.paused = true
	o.sec = s
	o.must(h.reg.Register(s.Entry(0), s))
	go func() { h.ran <- s.Run(h.ctx, h) }()
	o.connect()
	o.epoch, o.step, o.snap, o.got = 0, 0, nil, false
	o.checkpoint()
	for o.step != 0 && o.wrong == "" {
		o.checkpoint()
	}
}

func (o *ordeal) connect() {
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(o.t.Context())
	o.drop = cancel
	p, s := o.prim, o.sec
	o.ends.Go(func() { p.Serve(ctx, a) })
	o.ends.Go(func() { s.Serve(ctx, b) })
	synctest.Wait()
}

func (o *ordeal) disconnect() {
	o.drop()
	o.ends.Wait()
}

// checkpoint makes the next step of a checkpoint.
func (o *ordeal) checkpoint() {
	ctx := o.t.Context()
	switch o.step {
	case 0:
		o.note("mark %d", o.epoch)
		o.must(o.sec.Pause(ctx))
		o.must(o.prim.Pause(ctx))
		o.intake() // the guest's ring is part of its memory
		o.must(o.prim.Mark(o.epoch))
		var b bytes.Buffer
		q := qemufile.NewWriter(&b)
		o.must(o.p.reg.SaveDevices(q))
		vmstate.PutEOF(q)
		o.must(q.Flush())
		o.state, o.snap = b.Bytes(), o.p.g.clone()
		if o.lies {
			o.state = o.hostile(o.state)
		}
		for _, c := range o.clients {
			c.saw = c.una > 0
		}
		if o.epoch == 0 {
			o.base = o.snap // whatever went before the guest has no other survivor
		}
		o.must(o.prim.Resume(ctx))
		o.p.mu.Lock()
		o.p.asked = false
		o.p.mu.Unlock()
	case 1:
		o.note("loaded %d", o.epoch)
		o.must(o.s.reg.LoadDevices(o.state, nil))
	case 2:
		if o.r.IntN(2) == 0 {
			o.note("received %d", o.epoch)
			o.base, o.got = o.snap, true
			o.must(o.prim.Received(o.epoch))
			synctest.Wait()
			o.judge()
		}
	case 3:
		o.commit()
	case 4:
		if !o.got {
			o.must(o.prim.Received(o.epoch))
		}
		o.got = false
		o.must(o.prim.Loaded(o.epoch))
		o.epoch++
		o.step = -1
	}
	o.step++
	o.settle()
}

// commit has the secondary's guest become what was loaded.
func (o *ordeal) commit() {
	o.note("commit %d", o.epoch)
	o.must(o.s.reg.Commit())
	o.s.g = o.snap.clone()
	o.s.g.seed = o.hosts * 7919
	o.s.g.way = o.s.way
	o.s.mu.Lock()
	o.s.took = nil
	o.s.mu.Unlock()
	for _, c := range o.clients {
		c.frail = c.frail && !(o.snap.conns[c.port].open && (!c.back || c.saw))
	}
	o.base, o.snap = o.s.g, nil
	o.must(o.sec.Commit(o.epoch))
	if o.mode != "continuous" {
		o.must(o.sec.Resume(o.t.Context()))
	}
	o.must(o.sec.Resumed(o.epoch))
}

// dies has the host of the primary die. The other takes over.
func (o *ordeal) dies() {
	o.note("the primary dies, at step %d", o.step)
	o.failovers++
	ctx := o.t.Context()
	o.p.dies()
	o.disconnect()
	o.settle()
	o.p = nil
	switch {
	case o.step == 4: // it has committed already
	case o.got, o.step >= 2 && o.r.IntN(2) == 0:
		o.commit()
	case o.step >= 2:
		o.s.reg.Rollback()
	}
	o.snap, o.base, o.step, o.got = nil, nil, 0, false
	clear(o.newest)
	for _, c := range o.clients {
		if c.frail { // see filter.Edge
			o.begin(c)
			c.gone = c.back
		}
	}
	o.must(o.sec.Pause(ctx))
	o.must(o.sec.Failover())
	o.must(o.sec.Resume(ctx))
	o.settle()
}

// promoted has the host that has taken over be protected.
func (o *ordeal) promoted() {
	o.note("promoted")
	ctx := o.t.Context()
	o.must(o.sec.Pause(ctx))
	o.must(o.sec.Drain(ctx))
	o.settle()
	old := o.s
	old.dies()
	for _, c := range o.clients {
		c.frail = c.asks && (!old.g.conns[c.port].open || c.back && c.una == 0)
	}
	h := o.newHost(old.g)
	h.paused = true
	prim, left := o.sec.Promote(o.primaryConfig(h))
	if left != 0 {
		o.fail("%d connections are left", left)
	}
	o.prim, o.p, o.s, o.sec = prim, h, nil, nil
	o.must(h.reg.Register(prim.Entry(0), prim))
	go func() { h.ran <- prim.Run(h.ctx, h) }()
	o.must(prim.Resume(ctx))
	o.protect()
}

// loses has the host of the secondary die, and another one take its place.
func (o *ordeal) loses() {
	o.note("the secondary dies, at step %d", o.step)
	o.switches++
	ctx := o.t.Context()
	o.disconnect()
	o.s.dies()
	o.s, o.sec, o.base, o.snap = nil, nil, nil, nil
	o.must(o.prim.Pause(ctx))
	o.must(o.prim.Failover())
	o.must(o.prim.Resume(ctx))
	o.settle()
	o.protect()
}
