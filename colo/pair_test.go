package colo_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// small is a guest whose checkpoints are a few pages.
var small = colotest.VMConfig{Pages: 4, Touch: 2, TSCPerMille: 300, Seed: 1, Ring: 1024}

// host is one side of a pair, with everything a session needs.
type host struct {
	t     testing.TB
	name  string
	guest *colotest.VM
	net   *colotest.Network
	disk  *colotest.Disk
	plain plain
	reg   *vmstate.Registry
	bus   event.Bus
	world *world

	saver    *ram.Saver
	cache    *ram.Cache
	cacheCfg ram.CacheConfig
	saverCfg ram.SaverConfig

	mu     sync.Mutex
	events []event.Event

	err  error // of Run; valid when done is closed
	done chan struct{}
}

// plain is a device whose fields are its state: what was staged and not
// committed must be taken back.
type plain struct {
	guest     *colotest.VM
	v         uint64 // the guest's rounds
	committed uint64
}

func (p *plain) PreSave() error {
	p.v = uint64(total(p.guest.Rounds()))
	p.committed = p.v
	return nil
}

func (p *plain) VMState(f *vmstate.Fields) { f.Uint64("v", &p.v) }

func (p *plain) PostLoad(uint32) error {
	p.committed = p.v
	return nil
}

// world has all that the two sides share: the network that clients are on, the record of what
// the guests did, and the ledger of who may go on.
type world struct {
	cfg     colotest.VMConfig
	witness colotest.Witness
	ledger  colotest.Ledger

	mu   sync.Mutex
	wire [][]byte
}

func (w *world) send(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wire = append(w.wire, frame)
}

// heard returns what a client of the guest thinks of it.
func (w *world) heard(t testing.TB) (colotest.Verdict, []uint64) {
	t.Helper()
	o, err := colotest.NewOracle(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.wire {
		o.Frame(f)
	}
	return o.Verdict(), o.Rounds()
}

// newHost makes a side with a guest in its first state, paused.
func newHost(t testing.TB, w *world, name string) *host {
	t.Helper()
	h := &host{t: t, name: name, world: w, net: &colotest.Network{Send: w.send}, disk: colotest.NewDisk()}
	var tsc atomic.Uint64
	tsc.Store(uint64(len(name)) << 32) // the guests differ in what they read
	cfg := w.cfg
	cfg.TSC = func() uint64 { return tsc.Add(1) }
	cfg.Output = func(frame []byte) error { // of the present world
		if err := h.world.ledger.Frame(frame); err != nil {
			return err
		}
		if err := h.net.Output(frame); err != nil {
			return err
		}
		h.disk.AppendFrame(frame)
		return nil
	}
	var err error
	if h.guest, err = colotest.NewVM(cfg); err != nil {
		t.Fatal(err)
	}
	h.plain.guest = h.guest
	h.bus.SubscribeAll(func(r event.Record) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, r.Event)
	})
	return h
}

// reset makes the host as new, for a guest of the same configuration.
func (h *host) reset(t testing.TB, w *world) {
	t.Helper()
	stand(t, h)
	if err := h.guest.Reset(); err != nil {
		t.Fatal(err)
	}
	h.t, h.world, h.net, h.disk = t, w, &colotest.Network{Send: w.send}, colotest.NewDisk()
	h.events, h.err, h.done = nil, nil, nil
	h.plain.v, h.plain.committed = 0, 0
}

// close frees the host. Its sessions must have ended.
func (h *host) close() {
	h.drop()
	if err := h.guest.Close(); err != nil {
		h.t.Error(err)
	}
}

func (h *host) drop() {
	if h.cache != nil {
		if err := h.cache.Close(); err != nil {
			h.t.Error(err)
		}
		h.cache = nil
	}
}

// step lets the guest do n rounds, if it runs.
func (h *host) step(n int) {
	if err := h.guest.Step(n); err != nil && !errors.Is(err, colotest.ErrPaused) {
		h.t.Errorf("%s: %v", h.name, err)
	}
}

// primary prepares the host for the role, and returns a configuration to
// change.
func (h *host) primary() colo.PrimaryConfig {
	h.t.Helper()
	h.drop()
	h.reg = new(vmstate.Registry)
	var err error
	if h.saver, err = h.guest.RegisterPrimary(h.reg, h.saverCfg); err == nil {
		err = h.net.Register(h.reg)
	}
	if err == nil {
		err = h.reg.Register(vmstate.Entry{Name: "plain"}, &h.plain)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return colo.PrimaryConfig{
		VM: h.guest, State: h.reg, Net: h.net, Disks: replication.Group{h.disk},
		Events: &h.bus, Arbiter: &h.world.witness, Machine: "sim",
		CheckpointDelay: -1, PeerTimeout: time.Minute,
	}
}

// secondary prepares the host for the role, and returns a configuration to
// change.
func (h *host) secondary() colo.SecondaryConfig {
	h.t.Helper()
	h.drop()
	h.reg = new(vmstate.Registry)
	var err error
	if h.cache, err = h.guest.RegisterSecondary(h.reg, h.cacheCfg); err == nil {
		err = h.net.Register(h.reg)
	}
	if err == nil {
		err = h.reg.Register(vmstate.Entry{Name: "plain"}, &h.plain)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return colo.SecondaryConfig{
		VM: h.guest, State: h.reg, RAM: h.cache, Net: h.net, Disks: replication.Group{h.disk},
		Events: &h.bus, Arbiter: &h.world.witness, Machine: "sim",
		PeerTimeout: time.Minute, IdleTimeout: time.Minute,
	}
}

// runner is a session of either side.
type runner interface {
	Run(context.Context) error
	Failover() error
	Lost(error)
	Info() colo.Info
	Fenced() error
	End() error
	Yield(error)
}

// run starts a session.
func (h *host) run(ctx context.Context, r runner) {
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		h.err = r.Run(ctx)
	}()
}

// wait returns what the session's Run returned.
func (h *host) wait() error {
	<-h.done
	return h.err
}

// seen returns the events so far.
func (h *host) seen() []event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// void reports whether the host's guest is none: a cache that keeps no copy had
// begun to fill it.
func (h *host) void() bool {
	return h.cacheCfg.StagedOnly && !slices.ContainsFunc(h.seen(), func(e event.Event) bool {
		_, ok := e.(event.CheckpointCommit)
		return ok
	})
}

// exits returns the COLO_EXITs so far.
func (h *host) exits() (list []event.COLOExit) {
	for _, e := range h.seen() {
		if x, ok := e.(event.COLOExit); ok {
			list = append(list, x)
		}
	}
	return list
}

// pair is a primary and a secondary and their connection.
type pair struct {
	*world
	p, s      *host
	primary   *colo.Primary
	secondary *colo.Secondary
	pc, sc    *colotest.Conn
	tee       *tee // pc, with what the primary sent if options.record
	said      *[2]transcript
}

// options change a pair before it is made.
type options struct {
	guest     colotest.VMConfig // zero: small
	ps, sp    colotest.Flow
	primary   func(*colo.PrimaryConfig)
	secondary func(*colo.SecondaryConfig)
	again     *pair // whose hosts to use again; nil: new ones
	qemu      bool  // both sides say nothing that a QEMU does not say
	record    bool  // keep what the primary sends, in pair.tee

	saver ram.SaverConfig // the primary's
	cache ram.CacheConfig // with StagedOnly the primary sends again what the secondary wrote
}

// newPair makes a pair over a colotest.Pipe. The primary's guest runs; neither
// session does.
func newPair(t testing.TB, o options) *pair {
	t.Helper()
	return newPairIn(t, o, func(*pair) {})
}

// newPairIn is newPair for options that refer to the pair: known is called with it when
// it has its hosts.
func newPairIn(t testing.TB, o options, known func(*pair)) *pair {
	t.Helper()
	if o.guest.Pages == 0 {
		o.guest = small
	}
	x := &pair{world: &world{cfg: o.guest}}
	if o.again != nil {
		x.p, x.s = o.again.p, o.again.s
		x.p.reset(t, x.world)
		x.s.reset(t, x.world)
	} else {
		x.p, x.s = newHost(t, x.world, "primary"), newHost(t, x.world, "secondary")
	}
	known(x)
	x.p.cacheCfg, x.s.cacheCfg = o.cache, o.cache
	x.p.saverCfg = o.saver
	x.p.disk.Follow(x.s.disk)
	if err := x.p.guest.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.pc, x.sc = colotest.Pipe(o.ps, o.sp)
	x.tee = &tee{Conn: x.pc, keeps: o.record}
	x.join(t, x.tee, x.sc, o)
	return x
}

// join makes the sessions.
func (x *pair) join(t testing.TB, pc, sc io.ReadWriteCloser, o options) {
	t.Helper()
	pcfg, scfg := x.p.primary(), x.s.secondary()
	pcfg.QEMUWire, scfg.QEMUWire = o.qemu, o.qemu
	if o.cache.StagedOnly {
		pcfg.RAM = x.p.saver
	}
	if o.primary != nil {
		o.primary(&pcfg)
	}
	if pcfg.EarlyShare > 0 && pcfg.RAM == nil {
		pcfg.RAM = x.p.saver
	}
	if o.secondary != nil {
		o.secondary(&scfg)
	}
	var err error
	if x.primary, err = colo.NewPrimary(pc, pcfg); err != nil {
		t.Fatal(err)
	}
	if x.secondary, err = colo.NewSecondary(sc, scfg); err != nil {
		t.Fatal(err)
	}
}

// start runs both sessions.
func (x *pair) start(ctx context.Context) {
	x.s.run(ctx, x.secondary)
	x.p.run(ctx, x.primary)
}

// wait waits for both.
func (x *pair) wait() (primary, secondary error) { return x.p.wait(), x.s.wait() }

func (x *pair) close() {
	x.p.close()
	x.s.close()
}

// survivor returns the side whose guest runs, and fails unless exactly one does.
func (x *pair) survivor(t testing.TB) *host {
	t.Helper()
	p, s := !x.p.guest.Paused(), !x.s.guest.Paused()
	switch {
	case p && s:
		t.Fatalf("both guests run: primary %v, secondary %v", x.p.err, x.s.err)
	case !p && !s:
		t.Fatalf("no guest runs: primary %v, secondary %v", x.p.err, x.s.err)
	case p:
		return x.p
	}
	return x.s
}

// wantWhole checks what a takeover promises: the survivor is in a state that its
// history leads to, its disk with it, and a client of the guest saw all of that
// history and nothing else.
func (x *pair) wantWhole(t testing.TB) *host {
	t.Helper()
	h := x.survivor(t)
	h.step(3) // its output passes
	stand(t, h)
	other := x.p
	if h == x.p {
		other = x.s
	}
	for _, g := range []*host{h, other} {
		if g != h && g.void() {
			continue
		}
		if err := x.ledger.Verify(g.guest); err != nil {
			t.Errorf("the guest of the %s is in a state that never was: %v", g.name, err)
		}
	}
	for _, g := range []*host{x.p, x.s} {
		if g.plain.v != g.plain.committed {
			t.Errorf("a device of the %s has what was staged, %d, not what was committed, %d", g.name, g.plain.v, g.plain.committed)
		}
		if g.err != nil && (errors.Is(g.err, colo.ErrDegraded) || strings.Contains(g.err.Error(), "colotest: network") || strings.Contains(g.err.Error(), "colotest: disk")) {
			t.Errorf("the %s did something out of order: %v", g.name, g.err)
		}
	}
	wantInTurn(t, x.p.net)
	wantInTurn(t, x.s.net)
	v, rounds := x.heard(t)
	if !v.Clean() {
		t.Errorf("a client of the guest noticed: %+v", v)
	}
	if want := h.guest.Rounds(); !slices.Equal(rounds, want) {
		t.Errorf("the %s is at rounds %v, its client heard up to %v", h.name, want, rounds)
	}
	if got, want := len(h.disk.Content()), total(h.guest.Rounds()); got != want {
		t.Errorf("the %s has %d entries on its disk after %d rounds", h.name, got, want)
	} else if want := history(t, h.guest); !slices.Equal(sorted(h.disk.Content()), want) {
		t.Errorf("the disk of the %s has another history than its memory", h.name)
	}
	return h
}

func stand(t testing.TB, h *host) {
	t.Helper()
	if err := h.guest.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func total(n []uint64) (sum int) {
	for _, v := range n {
		sum += int(v)
	}
	return sum
}

func sorted(v []uint64) []uint64 {
	slices.Sort(v)
	return v
}

// history returns the hashes of all rounds of a guest, sorted.
func history(t testing.TB, g *colotest.VM) []uint64 {
	t.Helper()
	h, err := g.History()
	if err != nil {
		t.Fatal(err)
	}
	return sorted(h)
}

// wantInTurn checks that nothing of an epoch left before the secondary had
// received it, unless this side was alone.
func wantInTurn(t testing.TB, n *colotest.Network) {
	t.Helper()
	for _, r := range n.Released() {
		if !r.Alone && r.Epoch > r.Received {
			t.Errorf("output of epoch %d left when only epoch %d was received", r.Epoch, r.Received)
		}
	}
}
