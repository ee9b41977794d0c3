// Package oracle judges what a protected guest has said, from the outside and from
// nothing else: each frame that left, the memory of the side that goes on, and its disk.
//
// It runs the model of package guest beside what it hears, vCPU by vCPU. A frame that does
// not follow from the one before it is corrupted; two that say different things of one
// round, or one that the survivor does not remember, contradict each other; one that
// never left while later ones did is lost; one that left twice in the same words is
// counted and harmless. An input that the guest has answered the survivor must have
// taken, and the survivor's disk must have, sector by sector, what its memory says that
// it wrote.
//
// Those who test a pair of sides need it: it knows nothing of how they work.
package oracle

import (
	"fmt"

	"github.com/gocolo/lockstep/internal/guest"
)

// An Oracle judges what has left. It computes every vCPU's whole history from
// the frames alone, in whatever order they come, and so can tell a frame that
// no right guest would have sent. It belongs to one goroutine at a time.
type Oracle struct {
	chains []chain
	told   []told
	disk   *diskOracle // nil: the guest has none
	Verdict
}

// Verdict counts what has left.
type Verdict struct {
	Released     uint64 // frames that left, each counted once
	Lost         uint64 // rounds whose frame never left though later ones did
	Duplicated   uint64 // frames that left again with the same content
	Contradicted uint64 // frames that deny an earlier one, or that the survivor does not know
	Corrupted    uint64 // frames that do not follow from the history before them
	Answered     uint64 // inputs that the guest has said to have taken

	DiskVerdict

	First string // what was wrong first, in words
}

// Clean reports whether nothing wrong could be seen, from outside or by the guest.
func (v *Verdict) Clean() bool {
	return v.Released > 0 && v.Lost+v.Contradicted+v.Corrupted+v.DiskLost+v.DiskCorrupted == 0
}

// chain is the history of one vCPU.
type chain struct {
	model  *guest.Model
	rounds []round                // of round 1 on, without a gap
	early  map[uint64]guest.Frame // frames that came before their predecessors
	last   uint64                 // the greatest round that has left
}

// round is the report of a frame on its round: a hash and a time stamp.
type round struct{ h, t uint64 }

// tooEarly bounds how far a frame may be ahead of its predecessors.
const tooEarly = 1 << 20

// New makes the oracle of a guest that has said nothing yet.
func New(p guest.Params) (*Oracle, error) {
	o := &Oracle{disk: newDiskOracle(p)}
	for v := range p.VCPUs {
		m, err := guest.NewModel(p, v)
		if err != nil {
			return nil, err
		}
		o.chains = append(o.chains, chain{model: m, early: make(map[uint64]guest.Frame)})
		o.told = append(o.told, told{seed: p.Seed ^ uint64(v), hashes: []uint64{0}})
	}
	return o, nil
}

// Frame takes a frame that has left, and returns it, unless it cannot be read.
// It keeps nothing of p.
func (o *Oracle) Frame(p []byte) (f guest.Frame, ok bool) {
	f, err := guest.ParseFrame(p)
	if err == nil && f.VCPU >= len(o.chains) {
		err = fmt.Errorf("vCPU %d does not exist", f.VCPU)
	}
	if err != nil {
		o.Note(&o.Corrupted, "a frame that the guest cannot have sent: %v", err)
		return f, false
	}
	o.judge(f)
	return f, true
}

// judge takes a frame of a vCPU that exists.
func (o *Oracle) judge(f guest.Frame) {
	c := &o.chains[f.VCPU]
	next := uint64(len(c.rounds)) + 1
	if f.N == 0 || f.N > next+tooEarly {
		o.Note(&o.Corrupted, "vCPU %d: round %d after round %d", f.VCPU, f.N, next-1)
		return
	}
	old, known := round{}, f.N < next
	if known {
		old = c.rounds[f.N-1]
	} else if e, ok := c.early[f.N]; ok {
		old, known = round{e.H, e.T}, true
	}
	switch {
	case known && old == round{f.H, f.T}:
		o.Duplicated++
		return
	case known:
		o.Note(&o.Contradicted, "vCPU %d: round %d left as %#x and then as %#x", f.VCPU, f.N, old.h, f.H)
		return
	}
	o.Released++
	c.last = max(c.last, f.N)
	if f.N > next {
		c.early[f.N] = f
		return
	}
	for ok := true; ok; f, ok = c.early[uint64(len(c.rounds))+1] {
		delete(c.early, f.N)
		o.follow(c, f)
	}
}

// follow checks the next round of a chain.
func (o *Oracle) follow(c *chain, f guest.Frame) {
	t := f.T
	if takes := c.model.TakesTSC(f.N); takes != (t != 0) {
		o.Note(&o.Corrupted, "vCPU %d: round %d took in the time-stamp counter %#x, which it should: %v", f.VCPU, f.N, t, takes)
		c.model.Next(t)
	} else if _, h := c.model.Next(t); h != f.H {
		o.Note(&o.Corrupted, "vCPU %d: round %d has hash %#x, its history gives %#x", f.VCPU, f.N, f.H, h)
	}
	o.disk.follow(c.model)
	c.rounds = append(c.rounds, round{f.H, t})
}

// Progress returns the greatest round of a vCPU that has left, and the greatest input
// that it has answered.
func (o *Oracle) Progress(vcpu int) (last, answered uint64) {
	return o.chains[vcpu].last, o.told[vcpu].answered
}

// Finish compares what has left with the survivor's own memory of its rounds,
// one history for each vCPU, and counts what never left. The survivor has
// stopped and all that it sent has been taken.
func (o *Oracle) Finish(histories []History) {
	o.finishInput(histories)
	for v := range o.chains {
		c := &o.chains[v]
		last := c.last
		if v >= len(histories) {
			o.Note(&o.Contradicted, "vCPU %d: the survivor has no history", v)
			continue
		}
		h := histories[v]
		// The guest writes its history just before it sends the frame and
		// may have been stopped in between.
		if end := h.Last(); end > last+1 {
			last = end - 1
		}
		for n := uint64(1); n <= last; n++ {
			got, left := uint64(0), false
			if n <= uint64(len(c.rounds)) {
				got, left = c.rounds[n-1].h, true
			} else if f, ok := c.early[n]; ok {
				got, left = f.H, true
			}
			if !left {
				o.Note(&o.Lost, "vCPU %d: round %d of %d never left", v, n, last)
				continue
			}
			want, known := h.at(n)
			if n > h.Last() {
				o.Note(&o.Contradicted, "vCPU %d: round %d left, the survivor is at round %d", v, n, h.Last())
			} else if known && got != want {
				o.Note(&o.Contradicted, "vCPU %d: round %d left as %#x, the survivor knows it as %#x", v, n, got, want)
			}
		}
	}
}

// Note counts something wrong and keeps the words for the first.
func (o *Oracle) Note(count *uint64, format string, args ...any) {
	*count++
	if o.First == "" {
		o.First = fmt.Sprintf(format, args...)
	}
}

// History has the last rounds of a vCPU, as the memory of a guest holds them.
type History struct {
	First   uint64   `json:"first"`   // the oldest round that it still has
	Hashes  []uint64 `json:"hashes"`  // from First on
	T       uint64   `json:"t"`       // the time-stamp counter of the last round, if its frame is written
	Written uint64   `json:"written"` // the round of the last write to the disk that is done
	Input   uint64   `json:"input"`   // the number of the last input
	Inputs  uint64   `json:"inputs"`  // the hash of all of them
}

// Remembered reads the histories of a guest that stands still.
func Remembered(mem []byte, vcpus int) ([]History, error) {
	var histories []History
	for v := range vcpus {
		entries, err := guest.ReadRing(mem, v)
		if err != nil {
			return nil, err
		}
		h := History{Hashes: make([]uint64, len(entries))}
		for i, e := range entries {
			h.Hashes[i] = e.H
		}
		if h.Written, err = guest.LastWrite(mem, v); err != nil {
			return nil, err
		}
		if h.Input, h.Inputs, err = guest.LastInput(mem, v); err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			h.First = entries[0].N
			f, err := guest.LastFrame(mem, v)
			if err != nil {
				return nil, err
			}
			if f.N == h.Last() {
				h.T = f.T
			}
		}
		histories = append(histories, h)
	}
	return histories, nil
}

// Last returns the last round that is remembered, or 0.
func (h History) Last() uint64 {
	if len(h.Hashes) == 0 {
		return 0
	}
	return h.First + uint64(len(h.Hashes)) - 1
}

func (h History) at(n uint64) (uint64, bool) {
	if n < h.First || n > h.Last() {
		return 0, false
	}
	return h.Hashes[n-h.First], true
}
