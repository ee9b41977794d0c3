package guest

import (
	"math"
	"math/bits"
	"slices"
)

// Model follows one vCPU without its memory: it keeps a working set of its own
// and takes from outside only the time-stamp counters that the guest took in.
// So a client that sees every frame of a vCPU, from round 1 on, can tell whether
// the guest's state has ever been wrong. It belongs to one goroutine.
type Model struct {
	n, x, k uint64
	acc     float64
	set     [][]uint64 // the pages of the working set; nil: as it was at first
	touch   int
	tsc     uint64

	every, first, sectors uint64 // of the disk
	block                 []byte

	params Params // what the working set was at first, with vcpu
	vcpu   int
}

// NewModel returns the model of a vCPU before its first round.
func NewModel(p Params, vcpu int) (*Model, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p = p.withDefaults()
	m := &Model{x: p.seed(vcpu), touch: p.Touch, tsc: uint64(p.TSCPerMille), set: make([][]uint64, p.Pages), params: p, vcpu: vcpu}
	m.k = ^m.x
	if p.DiskEvery > 0 {
		m.every = uint64(p.DiskEvery)
		m.first, m.sectors = p.region(vcpu)
	}
	return m, nil
}

const perPage = PageSize / 8 // words

// page returns a page of the working set.
func (m *Model) page(i uint64) []uint64 {
	if m.set[i] == nil { // nobody has asked for it: most pages of most guests
		page := make([]uint64, perPage)
		for k := range page {
			page[k] = m.params.word(m.vcpu, i*perPage+uint64(k))
		}
		m.set[i] = page
	}
	return m.set[i]
}

// Next performs the next round, in which the guest took in t (0: nothing), and
// returns the round's number and hash.
func (m *Model) Next(t uint64) (n, h uint64) {
	m.n++
	first, _ := bits.Mul64(m.x, uint64(len(m.set)))
	for i := range uint64(m.touch) {
		page := m.page((first + i) % uint64(len(m.set)))
		for _, w := range [2]uint64{0, (m.n*wordStep + i*pageStep) % perPage} {
			m.x, page[w] = mix(m.x, page[w]), m.x
		}
	}
	m.x = mix(m.x, math.Float64bits(m.acc)) // before the sum, which rounds
	m.acc = accumulate(m.acc, m.x)
	m.k = m.k*lcg + m.n
	m.x = mix(mix(m.x, m.k), t)
	return m.n, m.x
}

// Round returns the number of the last round.
func (m *Model) Round() uint64 { return m.n }

// TakesTSC reports whether round n takes in the time-stamp counter; t of any
// other round's frame must be 0.
func (m *Model) TakesTSC(n uint64) bool { return takesTSC(n, m.tsc) }

// Word returns word i of the working set, as the guest's memory should have it.
func (m *Model) Word(i int) uint64 {
	if page := m.set[i/perPage]; page != nil {
		return page[i%perPage]
	}
	return m.params.word(m.vcpu, uint64(i))
}

// Clone returns an independent copy of the model in its present state.
func (m *Model) Clone() *Model {
	c := *m
	c.set = make([][]uint64, len(m.set))
	for i, page := range m.set {
		c.set[i] = slices.Clone(page)
	}
	c.block = nil
	return &c
}
