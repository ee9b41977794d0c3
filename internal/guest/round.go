package guest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// Constants of the program's arithmetic.
const (
	golden   = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	lcg      = 0x2545f491
	decay    = 0.75
	wordStep = 181 // first word of a round, per round
	pageStep = 7   // first word of a page, per page of the round
	pageMask = PageSize/8 - 1
)

// mix takes v into the running hash x. For each v it is a permutation of x, and for
// each x one of v: hashes that differ stay different if they take in the same, and
// become different if one takes in something else. But mix(x, x) is 0 for every x.
// So a word in memory that the hash takes in is exchanged for the hash as it was
// before: (x, v) becomes (mix(x, v), x), from which both can be told again.
func mix(x, v uint64) uint64 {
	x = (x ^ v) * golden
	return x ^ x>>32
}

// Regs is the state of one vCPU of the guest in Go: what the program keeps in registers.
// Use [Boot] to make one.
type Regs struct {
	VCPU int
	N    uint64  // rounds done
	X    uint64  // running hash; after a round, that round's h
	K    uint64  // the integer that each round computes with
	Acc  float64 // the SSE accumulator
}

// Boot returns the registers of a vCPU before its first round, from memory that
// Load prepared.
func Boot(mem []byte, vcpu int) (Regs, error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return Regs{}, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	seed := binary.LittleEndian.Uint64(mem[StateBase+vcpu*PageSize+stateSeed:])
	return Regs{VCPU: vcpu, X: seed, K: ^seed}, nil
}

// Round performs the vCPU's next round on guest memory as the program does, up
// to and not including its conversation with the device, and returns the
// address of the frame buffer to emit (see [Emitted]). touched, if not nil, is
// called before each write with its place in mem. It allocates nothing; the
// delay is the caller's business. Different vCPUs may run at once: they share
// no memory that any of them writes.
//
// It fails, with r unchanged, if the state page leads outside mem.
func Round(mem []byte, r *Regs, tsc func() uint64, touched func(off, n uint64)) (frame uint64, err error) {
	if r.VCPU < 0 || r.VCPU >= MaxVCPUs || len(mem) < lowMemory {
		return 0, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", r.VCPU, len(mem))
	}
	le := binary.LittleEndian
	state := mem[StateBase+r.VCPU*PageSize:][:PageSize]
	set, pages, touch := le.Uint64(state[stateSet:]), le.Uint64(state[statePages:]), le.Uint64(state[stateTouch:])
	frame = le.Uint64(state[stateFrame:])
	size := uint64(len(mem))
	if pages > size/PageSize || set > size || set+pages*PageSize > size || touch > pages ||
		frame > size || frame+bufferSize > size {
		return 0, fmt.Errorf("guest: state page of vCPU %d leads outside %d bytes of memory", r.VCPU, size)
	}
	ring, err := ringOf(mem, state)
	if err != nil {
		return 0, fmt.Errorf("vCPU %d: %w", r.VCPU, err)
	}
	disk, err := diskOf(mem, state, pages)
	if err != nil {
		return 0, fmt.Errorf("vCPU %d: %w", r.VCPU, err)
	}
	write := func(off, v uint64) {
		if touched != nil {
			touched(off, 8)
		}
		le.PutUint64(mem[off:], v)
	}

	n, x := r.N+1, r.X
	page, _ := bits.Mul64(x, pages)
	word := n * wordStep & pageMask
	for range touch {
		base := set + page*PageSize
		for _, at := range [2]uint64{base, base + word*8} {
			before := x
			x = mix(x, le.Uint64(mem[at:]))
			write(at, before)
		}
		word = (word + pageStep) & pageMask
		if page++; page >= pages {
			page = 0
		}
	}
	x = mix(x, math.Float64bits(r.Acc)) // before the sum, which rounds
	r.Acc = accumulate(r.Acc, x)
	r.K = r.K*lcg + n
	x = mix(x, r.K)
	var t uint64
	if takesTSC(n, le.Uint64(state[stateTSC:])) {
		t = tsc()
	}
	x = mix(x, t)
	r.N, r.X = n, x

	entry := ring.at(n)
	write(entry, n)
	write(entry+8, x)
	be := binary.BigEndian
	payload := frame + lengthSize + payloadOffset
	if touched != nil {
		touched(payload+payloadN, payloadSize-payloadN)
	}
	be.PutUint64(mem[payload+payloadN:], n)
	be.PutUint64(mem[payload+payloadH:], x)
	be.PutUint64(mem[payload+payloadT:], t)
	disk.ask(mem, n, x, set, pages, write)
	return frame, nil
}

// accumulate takes x into the accumulator. The conversion keeps the compiler
// from fusing the product and the sum, which would round once where the program
// rounds twice.
func accumulate(acc float64, x uint64) float64 {
	return float64(acc*decay) + float64(int64(x>>12))
}

// takesTSC reports whether round n takes in the time-stamp counter: a sequence
// that hits every share evenly, the same on both guests.
func takesTSC(n, perMille uint64) bool {
	hit, _ := bits.Mul64(n*golden, 1000)
	return hit < perMille
}
