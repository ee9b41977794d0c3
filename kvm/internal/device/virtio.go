package device

import (
	"bytes"
	"context"
	"log/slog"
	"sync"

	"github.com/gocolo/lockstep/vmstate"
)

// Registers of a legacy virtio PCI device without MSI-X; behind them is the
// device's own configuration. (Virtio 1.1, section 4.1.4.8.)
const (
	regOffered  = 0  // 32 bits
	regFeatures = 4  // 32 bits
	regPFN      = 8  // 32 bits, of the selected queue
	regSize     = 12 // 16 bits, of the selected queue
	regSelect   = 14 // 16 bits
	regNotify   = 16 // 16 bits
	regStatus   = 18
	regISR      = 19
	regConfig   = 20
)

// VirtioPorts is the number of ports of a virtio device.
const VirtioPorts = 0x100

// Bits of regISR, and of regStatus.
const (
	isrQueue  = 1
	isrConfig = 2

	statusDriverOK = 4 // the driver has set the device up
)

// virtio is the common part of the legacy virtio devices. mu guards all of it, except that
// a device works on chains without mu while busy is not 0. A call that would take the rings
// away from under it waits for that to end, and while it waits no other chain is begun.
type virtio struct {
	mu     sync.Mutex
	idle   sync.Cond // busy became 0
	busy   int       // chains at work
	held   int       // how many calls wait for busy to become 0
	irq    irq
	mem    *Memory
	log    *slog.Logger
	rules  seldom // that the guest broke
	faults seldom // of what the host has behind the device
	can    uint32 // features that this host can offer
	config []byte
	wire   []byte      // config as it was saved, or loaded
	varies int         // so many bytes at the beginning of config are state, the others the same on all hosts
	notify func(q int) // called without mu
	// settled, if it is not nil, is called with mu held when the driver has written its status.
	settled func()
	work    worker // wakes the goroutine that serves the device

	virtioState
	saved virtioState
}

// virtioState is the state that all of them have.
type virtioState struct {
	offered  uint32 // to the driver: what the host on which the guest began could offer
	features uint32 // of those, what the driver has taken
	selected uint16 // the queue that regSelect names
	status   uint8
	isr      uint8
	queues   []queue
}

func (v *virtio) init(queues int, offered uint32, config []byte, mem *Memory, line Line, log *slog.Logger) {
	v.can, v.offered, v.config, v.wire = offered, offered, config, make([]byte, len(config))
	v.work = make(worker, 1)
	v.idle.L = &v.mu
	v.irq.line = line
	v.mem, v.log = mem, logOr(log)
	for _, s := range []*virtioState{&v.virtioState, &v.saved} {
		s.queues = make([]queue, queues)
		for i := range s.queues {
			s.queues[i].mem = mem
		}
	}
}

// In implements Ports.
func (v *virtio) In(off uint16, p []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var reg [regConfig]byte
	put(reg[regOffered:][:4], v.offered)
	put(reg[regFeatures:][:4], v.features)
	if int(v.selected) < len(v.queues) {
		put(reg[regPFN:][:4], v.queues[v.selected].pfn)
		put(reg[regSize:][:2], QueueSize)
	}
	put(reg[regSelect:][:2], uint32(v.selected))
	reg[regStatus], reg[regISR] = v.status, v.isr
	for i := range p {
		switch at := int(off) + i; {
		case at < regConfig:
			if p[i] = reg[at]; at == regISR { // reading acknowledges
				v.isr = 0
				v.irq.set(false)
			}
		case at-regConfig < len(v.config):
			p[i] = v.config[at-regConfig]
		default:
			p[i] = 0
		}
	}
}

// Out implements Ports. Registers are written as wide as they are; anything else
// is ignored.
func (v *virtio) Out(off uint16, p []byte) error {
	v.mu.Lock()
	x := value(p)
	switch {
	case off == regFeatures && len(p) == 4:
		v.features = x & v.offered
	case off == regPFN && len(p) == 4:
		if int(v.selected) < len(v.queues) {
			v.wait()
			if int(v.selected) < len(v.queues) { // another vCPU may have written it
				v.queues[v.selected].setup(x)
			}
		}
	case off == regSelect && len(p) == 2:
		v.selected = uint16(x)
	case off == regNotify && len(p) == 2:
		v.mu.Unlock()
		if int(x) < len(v.queues) {
			v.notify(int(x))
		}
		return nil
	case off == regStatus && len(p) == 1:
		if v.status = uint8(x); x == 0 {
			v.reset()
		}
		if v.settled != nil {
			v.settled()
		}
	}
	v.mu.Unlock()
	return nil
}

// wait returns when the device works on no chain; some may have been performed in part. mu is
// held, not while waiting.
func (v *virtio) wait() {
	if v.busy == 0 {
		return
	}
	v.held++
	for v.busy > 0 {
		v.idle.Wait()
	}
	if v.held--; v.held == 0 {
		v.work.kick() // for the chains of other queues, which peek has left alone meanwhile
	}
}

// reset puts the device in the state that a driver begins with. When it returns, the device
// does not touch the rings any more. mu is held.
func (v *virtio) reset() {
	v.wait()
	v.features, v.selected, v.status, v.isr = 0, 0, 0, 0
	for i := range v.queues {
		v.queues[i].setup(0)
	}
	v.irq.set(false)
}

// release is called when the device has ended its work on a chain: it wakes the
// calls that wait for busy to become 0. mu is held.
func (v *virtio) release() {
	if v.busy--; v.busy == 0 {
		v.idle.Broadcast()
	}
}

// peek does what queue.peek does, and logs a ring that is broken. It finds nothing while a call
// waits for chains that were begun. mu is held.
func (v *virtio) peek(q int) (chain, bool) {
	if v.held > 0 {
		return chain{}, false
	}
	c, ok, err := v.queues[q].peek()
	v.broke(q, err)
	return c, ok
}

// broke logs that a ring is broken, if err says so.
func (v *virtio) broke(q int, err error) {
	if err != nil {
		v.rules.log(v.log, slog.LevelWarn, "the guest broke the rules of a virtqueue, which is left alone until it resets the device", "queue", q, "err", err)
	}
}

// interrupt tells the driver of what was pushed. mu is held.
func (v *virtio) interrupt(q int) {
	if v.queues[q].interrupts() {
		v.isr |= isrQueue
		v.irq.set(true)
	}
}

// Save implements State.
func (v *virtio) Save() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.copyState(&v.saved, &v.virtioState)
	copy(v.wire, v.config)
}

// Apply implements State.
func (v *virtio) Apply() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.copyState(&v.virtioState, &v.saved)
	copy(v.config[:v.varies], v.wire)
	v.irq.force(v.isr != 0)
}

func (v *virtio) copyState(to, from *virtioState) {
	queues := to.queues
	for i := range queues {
		q, o := &queues[i], &from.queues[i]
		q.pfn, q.last, q.used, q.broken = o.pfn, o.last, o.used, o.broken
		q.begun = append(q.begun[:0], o.begun...)
		for i := range q.begun { // who waits for a flush does so for the state in which it began
			q.begun[i].by = nil
		}
	}
	*to = *from
	to.queues = queues
}

// fields names the fields that all virtio devices have. optional are features that the
// stream may lack though this host could offer them: the guest began on a host that could
// not, and goes on without them.
func (v *virtio) fields(f *vmstate.Fields, optional uint32) {
	s := &v.saved
	f.Uint32("offered", &s.offered)
	f.Check("features that this host can offer", s.offered&^v.can == 0 && v.can&^(s.offered|optional) == 0)
	f.Bytes("config", v.wire)
	f.Check("the same configuration", bytes.Equal(v.wire[v.varies:], v.config[v.varies:]))
	f.Uint32("features", &s.features)
	f.Check("features offered", s.features&^s.offered == 0)
	f.Uint16("queue_sel", &s.selected)
	f.Uint8("status", &s.status)
	f.Uint8("isr", &s.isr)
	f.StructArray("queues", "virtqueue", 1, len(s.queues), func(i int, f *vmstate.Fields) { s.queues[i].vmstate(f) })
}

// worker wakes the goroutine that serves a device, when the guest's driver has
// notified the device.
type worker chan struct{}

func (w worker) kick() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// run calls step inside the gate whenever the worker is kicked, as long as it
// returns true, until ctx ends. After each step it calls finish, which may be nil, outside the gate.
func (w worker) run(ctx context.Context, gate *Gate, step func() (more bool), finish func(context.Context, *Gate)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w:
		}
		for more := true; more; {
			if !gate.Enter(ctx) {
				w.kick() // whoever runs next
				return
			}
			more = step()
			gate.Leave()
			if finish != nil {
				finish(ctx, gate)
			}
		}
	}
}
