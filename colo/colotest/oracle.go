package colotest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Verdict counts what an [Oracle] has seen.
type Verdict struct {
	Frames       uint64 // in all
	Duplicated   uint64 // said again, in the same words: legal on a network
	Lost         uint64 // rounds that were skipped
	Contradicted uint64 // said again, in other words
	Corrupted    uint64 // no frame of the guest, or not what its history leads to
	First        error  // the first thing wrong, lost frames included
}

// Clean reports whether a client of the guest could not tell that it is two.
func (v Verdict) Clean() bool { return v.Lost == 0 && v.Contradicted == 0 && v.Corrupted == 0 }

// Oracle is a client of a [VM]: told the frames that left, in order, it says
// whether one guest can have sent them all. It has a model of the guest, and so
// knows each frame before it comes, but for the time-stamp counters. It belongs
// to one goroutine.
type Oracle struct {
	vcpus   []oracleVCPU
	verdict Verdict
}

// oracleVCPU has the state of an Oracle for one vCPU.
type oracleVCPU struct {
	model *guest.Model
	said  []said // by round, from 1
	lost  bool   // the model cannot follow any more
	next  uint64
}

// said holds the report of a vCPU on one round: the hash of the round, and the counter that it
// took in.
type said struct{ h, t uint64 }

// NewOracle returns the oracle of a guest in its first state.
func NewOracle(cfg VMConfig) (*Oracle, error) {
	p := cfg.params()
	o := &Oracle{}
	for i := range p.VCPUs {
		m, err := guest.NewModel(p, i)
		if err != nil {
			return nil, err
		}
		o.vcpus = append(o.vcpus, oracleVCPU{model: m, next: 1})
	}
	return o, nil
}

// Frame takes a frame.
func (o *Oracle) Frame(b []byte) {
	v := &o.verdict
	v.Frames++
	f, err := guest.ParseFrame(b)
	if err == nil && (f.VCPU >= len(o.vcpus) || f.N == 0) {
		err = fmt.Errorf("vcpu %d round %d is none of the guest's", f.VCPU, f.N)
	}
	if err != nil {
		o.wrong(&v.Corrupted, 1, err)
		return
	}
	c := &o.vcpus[f.VCPU]
	if f.N < c.next {
		if f.N > uint64(len(c.said)) {
			return // before a gap
		}
		if was := c.said[f.N-1]; was != (said{f.H, f.T}) {
			o.wrong(&v.Contradicted, 1, fmt.Errorf("vcpu %d round %d said %x, and before %x", f.VCPU, f.N, f.H, was.h))
			return
		}
		v.Duplicated++
		return
	}
	if f.N > c.next {
		o.wrong(&v.Lost, f.N-c.next, fmt.Errorf("vcpu %d skips from round %d to %d", f.VCPU, c.next-1, f.N))
		c.lost = true
	}
	c.next = f.N + 1
	if c.lost {
		return
	}
	c.said = append(c.said, said{f.H, f.T})
	if f.T != 0 && !c.model.TakesTSC(f.N) {
		o.wrong(&v.Corrupted, 1, fmt.Errorf("vcpu %d round %d took in a time stamp", f.VCPU, f.N))
		return
	}
	if _, h := c.model.Next(f.T); h != f.H {
		o.wrong(&v.Corrupted, 1, fmt.Errorf("vcpu %d round %d said %x, its history leads to %x", f.VCPU, f.N, f.H, h))
		c.lost = true
	}
}

func (o *Oracle) wrong(count *uint64, n uint64, err error) {
	*count += n
	if o.verdict.First == nil {
		o.verdict.First = err
	}
}

// Verdict returns what has been seen so far.
func (o *Oracle) Verdict() Verdict { return o.verdict }

// Rounds returns up to which round each vCPU has been heard.
func (o *Oracle) Rounds() []uint64 {
	n := make([]uint64, len(o.vcpus))
	for i := range o.vcpus {
		n[i] = o.vcpus[i].next - 1
	}
	return n
}

// Ledger remembers every frame that any guest of a pair gave, whether it left or
// not. With it a guest's whole state can be checked: it must be what its own
// history leads to. It may be used from any goroutine.
type Ledger struct {
	mu    sync.Mutex
	times map[entry]uint64
}

// entry is a frame of a guest: the round of a vCPU, and its hash.
type entry struct {
	vcpu int
	n, h uint64
}

// Frame notes a frame. Call it in a [VMConfig]'s Output of both guests.
func (l *Ledger) Frame(b []byte) error {
	f, err := guest.ParseFrame(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.times == nil {
		l.times = make(map[entry]uint64)
	}
	l.times[entry{f.VCPU, f.N, f.H}] = f.T
	return nil
}

// Verify checks a guest, which must stand still and have done at most as many rounds as its
// memory remembers, 65536 unless its Ring says otherwise: its registers, its ring and its
// working set must all be what the history in its ring leads to, round by round, and every
// round of it must have been run by one of the guests that the ledger knows.
func (l *Ledger) Verify(g *VM) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !g.Paused() {
		return ErrRunning
	}
	for i, v := range g.vcpus {
		if err := l.verify(g, i, v); err != nil {
			return fmt.Errorf("vcpu %d: %w", i, err)
		}
	}
	return nil
}

func (l *Ledger) verify(g *VM, i int, v *vcpu) error {
	ring, err := guest.ReadRing(g.mem, i)
	if err != nil {
		return err
	}
	m, err := guest.NewModel(g.params, i)
	if err != nil {
		return err
	}
	for _, e := range ring {
		t, ok := l.times[entry{i, e.N, e.H}]
		if !ok && (v.frame == 0 || e.N != v.regs.N) {
			return fmt.Errorf("no guest has run round %d with hash %x", e.N, e.H)
		}
		if !ok { // given to nobody yet: it is still in the frame buffer
			b, err := guest.Emitted(g.mem, v.frame)
			if err != nil {
				return err
			}
			f, err := guest.ParseFrame(b)
			if err != nil {
				return err
			}
			t = f.T
		}
		if n, h := m.Next(t); n != e.N || h != e.H {
			return fmt.Errorf("round %d has hash %x, its history leads to round %d with %x", e.N, e.H, n, h)
		}
	}
	if v.regs.N != m.Round() {
		return fmt.Errorf("registers are of round %d, memory is of round %d", v.regs.N, m.Round())
	}
	if n := len(ring); n > 0 && v.regs.X != ring[n-1].H {
		return fmt.Errorf("registers have hash %x, memory %x", v.regs.X, ring[n-1].H)
	}
	base := g.params.MemSize() - uint64((g.params.VCPUs-i)*g.params.Pages)*ram.PageSize // the working sets come last
	set := g.mem[base:][:g.params.Pages*ram.PageSize]
	var word [8]byte
	for w := range len(set) / 8 {
		binary.LittleEndian.PutUint64(word[:], m.Word(w))
		if !bytes.Equal(word[:], set[8*w:8*w+8]) {
			return fmt.Errorf("page %d of the working set is not of round %d", w*8/ram.PageSize, m.Round())
		}
	}
	return nil
}
