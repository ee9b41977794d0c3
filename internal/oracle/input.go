package oracle

import "github.com/gocolo/lockstep/internal/guest"

// told keeps what the client has told a vCPU, and what that has answered. An answer
// is the same whenever it is given: the number of the last input that was taken,
// and a hash of all of them up to it.
type told struct {
	seed     uint64
	hashes   []uint64 // of the first n inputs, n = 0 and up; one more than was told
	answered uint64   // the greatest number
}

// word returns the word of input m.
func (t *told) word(m uint64) uint64 { return guest.NextInput(t.seed, m, 0) }

// VCPUs is how many vCPUs the guest has.
func (o *Oracle) VCPUs() int { return len(o.chains) }

// Next returns what a vCPU is to be told now: the input after the last that it
// has answered.
func (o *Oracle) Next(vcpu int) guest.Input {
	t := &o.told[vcpu]
	m := t.answered + 1
	if m == uint64(len(t.hashes)) {
		t.hashes = append(t.hashes, guest.NextInput(t.hashes[m-1], m, t.word(m)))
	}
	return guest.Input{VCPU: vcpu, M: m, V: t.word(m)}
}

// Reply takes a frame that has left, if it is an answer.
func (o *Oracle) Reply(p []byte) (is bool) {
	r, err := guest.ParseReply(p)
	if err != nil || r.VCPU >= len(o.told) {
		return false
	}
	t := &o.told[r.VCPU]
	switch {
	case r.M == 0 || r.M >= uint64(len(t.hashes)):
		o.Note(&o.Corrupted, "vCPU %d: an answer to input %d, which it was not told", r.VCPU, r.M)
	case r.Y != t.hashes[r.M] || r.V != t.word(r.M):
		o.Note(&o.Corrupted, "vCPU %d: the answer to input %d has hash %#x, the inputs give %#x", r.VCPU, r.M, r.Y, t.hashes[r.M])
	case r.M > t.answered:
		o.Answered += r.M - t.answered
		t.answered = r.M
	}
	return true
}

// finishInput compares what was answered with the survivor's own memory: the
// survivor must have taken every input that the guest has answered.
func (o *Oracle) finishInput(histories []History) {
	for v := range histories[:min(len(histories), len(o.told))] {
		t, h := &o.told[v], histories[v]
		switch {
		case h.Input < t.answered:
			o.Note(&o.Contradicted, "vCPU %d: input %d was answered, the survivor has taken %d", v, t.answered, h.Input)
		case h.Input >= uint64(len(t.hashes)) || h.Inputs != t.hashes[h.Input]:
			o.Note(&o.Corrupted, "vCPU %d: the survivor's memory of %d inputs is %#x, which is not what it was told", v, h.Input, h.Inputs)
		}
	}
}
