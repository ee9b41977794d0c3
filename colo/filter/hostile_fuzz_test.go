package filter_test

import (
	"math/rand/v2"
	"testing"
)

// A byteSource has a number from each byte of a fuzzer, and from then on others.
type byteSource struct {
	b    []byte
	then *rand.PCG
}

func (s *byteSource) Uint64() uint64 {
	if len(s.b) == 0 {
		return s.then.Uint64()
	}
	v := uint64(s.b[0])
	s.b = s.b[1:]
	return v * 0x0101010101010101
}

func (s *byteSource) more() bool { return len(s.b) > 0 }

// Records that are well-formed in their bounds are refused or serve, as a test has it for those
// that are drawn. Only so does a fuzzer reach what is behind the checks of a table.
func FuzzHostileTablesServe(f *testing.F) {
	for seed := range byte(8) {
		b, r := make([]byte, 600), rand.New(rand.NewPCG(uint64(seed), 1))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &byteSource{b, rand.NewPCG(1, 1)}
		serveHostile(t, "", rand.New(s), s.more)
	})
}
