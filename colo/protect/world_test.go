package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/internal/packet"
)

// A world is two hosts, or three, an arbiter, and a client who hears what leaves either.
type world struct {
	t      *testing.T
	began  time.Time
	f      *fabric
	store  *failovertest.Store
	guest  colotest.VMConfig
	term   time.Duration
	ledger colotest.Ledger

	names []string      // the hosts that there can be
	turn  time.Duration // of three, each reaches for one of the others for so long, and then for the next

	settles atomic.Bool // no more faults come

	delay    time.Duration // from one checkpoint to the next; 0: what it is by default
	lean     bool          // hosts keep no copy of the memory
	channels int           // of memory, that hosts have

	twofold bool // the guest has two vCPUs, each of which has a NIC and half of the disk, which is two
	late    bool // it stands still until its checkpoint is complete

	manual  bool                    // there is no arbiter
	heeds   []string                // hosts whose arbiters heed failover.Claim.From; nil: all do. A guest is released where it is handed to another
	asked   func(host, what string) // is called with each question to the arbiter's store, before it is asked; nil: not
	ailing  bool                    // the VMM of a host may fail
	ailed   atomic.Bool             // one has
	outside bool                    // of a bubble: between two looks at gates any time may pass

	rates        map[string]float64 // of each host's clock; nil: all run at the same
	apart        bool               // rates differ by more than hosts allow for: that two act at a time is counted
	together     atomic.Int64       // how often
	certificates *certificates      // nil: connections are plain
	versions     versions           // of the hello that hosts speak; nil: all speak this one
	spoilt       atomic.Bool        // what the arbiter has is no record

	compared bool   // the guests' output is, instead of waiting for checkpoints
	agreed   uint64 // packets that left since both guests had said the same, as far as hosts that left knew
	diverged uint64 // checkpoints that a divergence asked for

	disks   bool                            // the guest has one
	growing bool                            // it can become longer
	grows   func(h *host, size int64) error // called before an image becomes longer; nil: it does
	size    int                             // of it
	file    []byte                          // what a guest was saved to, from which the next that is told to start goes on
	images  map[string]*image               // by host; a host that comes back finds its own
	kept    map[string]*lasting             // of each image, what outlives a process; nil: nothing does
	base    []byte                          // what the disk had when the guest was started anew; nil: nothing
	before  int                             // how many frames had left by then
	anew    atomic.Int64                    // how often the guest was started from disks
	byWord  atomic.Bool                     // a person has said that they will do
	record  *trace                          // nil: nothing is recorded
	counts  *counts                         // nil: nothing is counted

	announced atomic.Int64 // frames in which hosts have said where the guest is

	mu     sync.Mutex
	writes map[uint64][]write // by the hash of the round that made them
	wire   [][]byte
	oracle *colotest.Oracle
	last   string // the host that the last frame came from
	hosts  []*host
	booted []*host // all that there ever were
}

func newWorld(t *testing.T) *world {
	interval, ring := time.Millisecond, 1<<16 // all rounds of the longest test
	if testing.Short() {
		interval *= 8 // what a guest does is most of what a test costs; where frames are counted it is set back
		ring /= 2
	}
	w := &world{
		t: t, began: time.Now(), f: newFabric(), names: []string{"a", "b"}, store: new(failovertest.Store), images: map[string]*image{}, writes: map[uint64][]write{}, term: time.Second, size: diskSize,
		guest: colotest.VMConfig{Pages: 4, Touch: 2, TSCPerMille: 300, Seed: 1, Ring: ring, Interval: interval},
	}
	o, err := colotest.NewOracle(w.guest)
	if err != nil {
		t.Fatal(err)
	}
	w.oracle = o
	return w
}

// uplink is the host's way to the client.
type uplink struct{ h *host }

func (u uplink) WritePacket(p []byte) error { return u.h.w.hear(u.h, p) }

func (u uplink) ReadPacket() ([]byte, error) {
	<-u.h.dead
	return nil, errDead
}

func (u uplink) Close() error { u.h.once.Do(func() { close(u.h.dead) }); return nil }

var errDead = errors.New("killed")

// hear is the client, who must not be able to tell that there are two hosts.
func (w *world) hear(h *host, p []byte) error {
	if h.killed.Load() {
		return errDead
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Once is enough: each frame of a seed that goes wrong may do the same.
	told := w.t.Failed() || w.outside
	if !told && !h.mayEmit() {
		w.actsToo("a frame left %s while its gate is shut", h.name)
	}
	for _, o := range w.hosts {
		if !told && o != h && !o.killed.Load() && o.job.Gate().Open() {
			w.actsToo("a frame left %s while the gate of %s is open", h.name, o.name)
		}
	}
	if announces(p) {
		h.trace("announces", len(p))
		w.announced.Add(1)
		return nil
	}
	w.oracle.Frame(p)
	h.trace("frame", int(binary.BigEndian.Uint64(p[len(p)-16:])))
	w.last = h.name
	w.wire = append(w.wire, append([]byte(nil), p...))
	return nil
}

// actsToo is called when a host acts for the guest that must not, or while another may.
func (w *world) actsToo(format string, names ...any) {
	if w.together.Add(1); !w.apart {
		w.t.Errorf(format, names...)
	}
}

// announces reports whether a host, and not its guest, has sent a frame: where the
// guest is.
func announces(p []byte) bool {
	t := binary.BigEndian.Uint16(p[12:])
	return t == packet.TypeARP || t == 0x8035 // RARP
}

func (w *world) heard() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wire)
}

func (w *world) clean() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.oracle.Verdict(); !v.Clean() {
		w.t.Errorf("the client noticed: %+v", v)
	}
}

// other is whom a host reaches for now.
func (w *world) other(name string) string {
	others := w.others(name)
	if len(others) == 1 {
		return others[0]
	}
	turn := uint64(time.Since(w.began) / w.turn)
	if w.settles.Load() { // whoever calls once a second would always have the same one's turn
		turn = uint64(bits.OnesCount64(turn))
	}
	return others[turn%uint64(len(others))]
}

// others returns the names of the hosts beside one.
func (w *world) others(name string) []string {
	return slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return n == name })
}

// boot makes a host and starts its job. change may be nil.
func (w *world) boot(name string, start bool, change func(*Config)) *host {
	w.t.Helper()
	h := &host{w: w, name: name, done: make(chan struct{}), dead: make(chan struct{})}
	var err error
	g := w.guest
	g.Output = func(frame []byte) error {
		h.pace()
		if err := w.ledger.Frame(frame); err != nil {
			w.t.Error(err)
		}
		w.noteWrites(h, frame)
		switch {
		case h.proxy != nil:
			return h.proxy.WritePacket(frame)
		case w.twofold && vCPUOf(frame) == 1:
			return h.second.nic.WritePacket(frame)
		}
		return h.nic.WritePacket(frame)
	}
	if w.disks {
		g.Disk, g.DiskEvery, g.Write = uint64(w.size), 2, h.write
		if h.image = w.images[name]; h.image == nil {
			h.image = &image{b: make([]byte, w.size)}
			w.images[name] = h.image
		}
	}
	if h.guest, err = colotest.NewVM(g); err != nil {
		w.t.Fatal(err)
	}
	var guest Guest = h.guest
	if w.ailing {
		guest = ailingGuest{h.guest, h}
	}
	var network Network
	if w.compared {
		h.proxy, err = NewProxy(ProxyConfig{Uplink: uplink{h}, Deliver: func([]byte) error { return nil }})
		network = pacedProxy{h.proxy, h}
	} else {
		h.nic, err = NewNIC(NICConfig{Uplink: uplink{h}})
		network = paced{h.nic, h}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	l := newListener(w.f, name)
	l.wrap = func(c net.Conn) net.Conn { return w.versions.wrap(name, c) }
	terms := PortConfig{Insecure: true}
	if w.certificates != nil {
		terms = PortConfig{TLS: w.certificates.config(name)}
	}
	port, err := NewPort(l, terms)
	if err != nil {
		w.t.Fatal(err)
	}
	bus := new(event.Bus)
	bus.SubscribeAll(h.observe)
	cfg := Config{
		Name: "guest", Host: name, Guest: guest, Network: []Network{network}, Start: start, Events: bus,
		Peer: Peer{
			Port: port, PortConfig: terms,
			Dialer: func(ctx context.Context) (net.Conn, error) {
				if h.killed.Load() {
					return nil, errDead
				}
				conn, err := w.f.dial(ctx, name, w.other(name))
				if err != nil {
					return nil, err
				}
				return w.versions.wrap(name, conn), nil
			},
		},
		Arbiter: failover.NewStoreArbiter(ofHost{w.store, h}), Term: w.term, NoMemoryCopy: w.lean, CheckpointDelay: w.delay, LateResume: w.late,
	}
	if w.heeds != nil && !slices.Contains(w.heeds, name) {
		cfg.Arbiter = heedsNothing{cfg.Arbiter}
	}
	if w.disks {
		if h.disk, err = NewDisk(h.diskConfig("root", name)); err != nil {
			w.t.Fatal(err)
		}
		cfg.Disks = []*Disk{h.disk}
	}
	if w.twofold {
		h.addSecond(&cfg)
	}
	if w.certificates != nil {
		cfg.Peer.Name = pairName
	}
	if w.manual {
		cfg.Arbiter = nil
	}
	if h.restored = w.file != nil && start; h.restored {
		if cfg.Held, err = Restore(bytes.NewReader(w.file), guest, ""); err != nil {
			w.t.Fatal(err)
		}
	}
	if change != nil {
		change(&cfg)
	}
	h.byItsClock(&cfg)
	h.lean = cfg.NoMemoryCopy
	if h.job, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	h.token = h.job.token
	w.mu.Lock()
	w.hosts, w.booted = append(w.hosts, h), append(w.booted, h)
	w.mu.Unlock()
	w.f.open(l) // who finds it finds the host
	ctx, cancel := context.WithCancelCause(w.t.Context())
	h.stop = cancel
	var group sync.WaitGroup
	group.Go(func() { h.guest.Run(ctx) })
	group.Go(func() { port.Serve(ctx) })
	go func() {
		defer close(h.done)
		h.err = h.job.Run(ctx)
		h.stop(nil)
		group.Wait()
	}()
	return h
}

// dialBy has each connection that a host makes wrapped.
func dialBy(c *Config, wrap func(net.Conn) net.Conn) {
	dial := c.Peer.Dialer
	c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
}

var errHalt = errors.New("halted")

// protected boots a pair and waits until it is in step.
func (w *world) protected() (a, b *host) {
	w.t.Helper()
	b = w.boot("b", false, nil)
	a = w.boot("a", true, nil)
	a.is(Protected)
	b.is(Following)
	return a, b
}

// fencedAlone boots a pair, kills host a, silently, and gives the guest to b by Fenced while
// neither reaches the arbiter.
func (w *world) fencedAlone() (a, b *host) {
	w.t.Helper()
	a, b = w.protected()
	a.noArbiter.Store(true)
	b.noArbiter.Store(true)
	a.kill(true)
	a.bury()
	b.is(Asking)
	if err := b.job.Fenced(); err != nil {
		w.t.Fatal(err)
	}
	b.is(Alone)
	return a, b
}

// verify checks a guest's whole state against what the guests ever did.
func (w *world) verify(h *host) {
	w.t.Helper()
	if err := w.ledger.Verify(h.guest); err != nil {
		w.t.Errorf("%s: %v", h.name, err)
	}
	if w.disks && h.ran {
		w.verifyDisk(h)
	}
}
