package device

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

type rngRig struct {
	*board
	*ring
	rng *RNG
}

func newRNGRig(t testing.TB, source string) *rngRig {
	b := newBoard(t)
	rng := NewRNG(strings.NewReader(source), b.memory(), b.line, nil)
	return &rngRig{b, newRing(b, rng, 0, 0x10000), rng}
}

func TestADriverGetsTheRandomBytesThatItAskedFor(t *testing.T) {
	source := strings.Repeat("chance", 2000)
	r := newRNGRig(t, source)
	r.offer(0, part{testData, 5, true}, part{testData + 100, 6, true})
	r.offer(8, part{testData + 1000, 8192, true}) // more than it is given at a time
	r.offer(16, part{testHeader, 8, false})       // nothing to write to
	r.watch(func() { drain(r.rng.step) })
	r.want("requests", usedEntry{0, 11}, usedEntry{8, rngChunk}, usedEntry{16, 0})
	got := append(bytes.Clone(r.mem[testData:][:5]), r.mem[testData+100:][:6]...)
	if got = append(got, r.mem[testData+1000:][:rngChunk]...); string(got) != source[:len(got)] {
		t.Errorf("%q", got[:20])
	}
	if level, _ := r.raised(); !level {
		t.Error("no interrupt")
	}
}

func TestARequestWithoutRandomnessWaits(t *testing.T) {
	r := newRNGRig(t, "")
	r.rng.source = iotest.ErrReader(errors.New("no"))
	r.offer(0, part{testData, 8, true})
	r.untouched("without a source", func() { drain(r.rng.step) })
	// It is state, and answered elsewhere.
	twin := newRNGRig(t, "another's")
	state := stream(t, r.rng)
	copy(twin.mem, r.mem)
	must(t, load(twin.rng, state))
	twin.seen = r.seen
	twin.watch(func() { drain(twin.rng.step) })
	twin.want("the request", usedEntry{0, 8})
	if got := string(twin.mem[testData:][:8]); got != "another'" {
		t.Errorf("%q", got)
	}
}
