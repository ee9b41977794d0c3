package multifd

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

// A packet is what a Reader that reads nothing else says that it is, whichever packets came before it.
func TestAPacketHasNothingOfTheOnesBefore(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var in []byte
	var each [][]byte
	for range 300 {
		all := packets()
		one := written(t, all[rnd.IntN(len(all))].Put)
		in, each = append(in, one...), append(each, one)
	}
	c := NewReader(qemufile.NewReader(&slow{p: in}))
	for i, p := range each {
		got, err := c.Read()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		want, err := NewReader(reader(p)).Read()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(*want, *got, as); d != "" {
			t.Fatalf("packet %d: %s", i, d)
		}
	}
}

// slow brings a few bytes at a time.
type slow struct{ p []byte }

func (s *slow) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), 700)], s.p)
	s.p = s.p[n:]
	return n, nil
}
