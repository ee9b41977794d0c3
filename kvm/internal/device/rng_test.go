package device

import (
	"bytes"
	"context"
	"errors"
	"runtime"
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

// step has the device look, and read what it wants.
func (r *RNG) step() bool {
	more := r.serve()
	r.finish(context.Background(), nil)
	return more
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

// slowSource is a source of randomness that waits to be told what to say.
type slowSource struct {
	asked chan struct{}
	says  chan string
}

func (s slowSource) Read(p []byte) (int, error) {
	s.asked <- struct{}{}
	return copy(p, <-s.says), nil
}

// A source may take long, as a chip does. The guest is paused, and resets the device, meanwhile; what comes then is for
// the next request, of which no more is filled than there is.
func TestNothingButItsRequestWaitsForRandomness(t *testing.T) {
	r := newRNGRig(t, "")
	source := slowSource{make(chan struct{}), make(chan string)}
	r.rng.source = source
	r.offer(0, part{testData, 8, true})
	run(r.rng.Work, r.gate, func() {
		r.kick()
		<-source.asked
		must(t, r.gate.Close(t.Context()))
		must(t, load(r.rng, stream(t, r.rng)))
		r.gate.Open()
		r.out(regStatus, 1, 0)
		r.want("before there is any", []usedEntry{}...)
		r.ring = newRing(r.board, r.rng, 0, 0x20000)
		r.offer(0, part{testData, 100, true})
		r.kick()
		source.says <- "12345678"
		var got []usedEntry
		for len(got) == 0 {
			must(t, r.gate.Close(t.Context()))
			got = r.used()
			r.gate.Open()
			runtime.Gosched()
		}
		if len(got) != 1 || got[0] != (usedEntry{0, 8}) || string(r.mem[testData:][:8]) != "12345678" {
			t.Errorf("returned %v with %q", got, r.mem[testData:][:8])
		}
	})
}
