package compare_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// stamps is opened, with timestamps, on which the primary's guest says what it says at a time.
func stamps(t *testing.T) (x *rig, p, s func(at, seq uint32, text string) []compare.Frame, hear func(echo, ack uint32, blocks ...uint32) uint32) {
	x, tell, say := opened(t, nil)
	with := func(to func(ackSeg) compare.Result) func(at, seq uint32, text string) []compare.Frame {
		return func(at, seq uint32, text string) []compare.Frame {
			a := data(seq, text)
			a.opts = wireTimes(at, 7)
			var out []compare.Frame
			for _, f := range to(a).Release {
				out = append(out, compare.Frame{Data: append([]byte(nil), f.Data...)})
			}
			return out
		}
	}
	hear = func(echo, ack uint32, blocks ...uint32) uint32 {
		f := answer(ack, wireTimes(7, echo), blocks...)
		x.Inbound(compare.Frame{Data: f})
		return binary.BigEndian.Uint32(f[34+28:])
	}
	return x, with(tell), with(say), hear
}

func stampOf(t *testing.T, frames []compare.Frame) uint32 {
	t.Helper()
	if len(frames) != 1 {
		t.Fatalf("%d have left", len(frames))
	}
	return binary.BigEndian.Uint32(frames[0].Data[34+24:])
}

// A packet that leaves for a guest has the newest timestamp that has left, or that of a
// repetition which has not: the echo of an older one would tell the guest that what it
// repeated was not lost.
func TestWhatIsRelayedHasTheNewestTimestamp(t *testing.T) {
	x, p, s, hear := stamps(t)
	p(10, 100, "abcd")
	s(11, 100, "abcd")
	p(12, 100, "abcd")
	p(13, 104, "efgh")
	s(13, 104, "efgh")
	x.now = x.now.Add(10 * time.Millisecond)
	s(13, 108, "")
	hear(13, 100, 104, 108)
	x.now = x.now.Add(15 * time.Millisecond)
	if got := stampOf(t, s(99, 100, "abcd")); got != 13 {
		t.Errorf("it leaves with the timestamp %d", got)
	}
	p(20, 108, "ijkl")
	p(30, 108, "ijkl") // it waits already, and takes the timestamp
	x.now = x.now.Add(15 * time.Millisecond)
	if got := stampOf(t, s(99, 100, "abcd")); got != 30 {
		t.Errorf("it leaves with the timestamp %d", got)
	}
	if got := stampOf(t, s(20, 108, "ijkl")); got != 30 {
		t.Errorf("what waited leaves with the timestamp %d", got)
	}
}

// A guest that hears the echo of what it sent before its first repetition takes that for
// needless. The peer has got what the other guest sent, or what left late.
func TestAGuestHearsNoEchoThatTakesItsLossBack(t *testing.T) {
	start := func() (p, s func(at, seq uint32, text string) []compare.Frame, hear func(echo, ack uint32, blocks ...uint32) uint32) {
		_, p, s, hear = stamps(t)
		p(10, 100, "abcd")
		s(10, 100, "abcd")
		p(11, 104, "efgh")
		s(11, 104, "efgh")
		hear(7, 100, 104, 108)
		return p, s, hear
	}
	_, _, before := start()
	if got := before(11, 108); got != 11 {
		t.Errorf("nothing was repeated: the echo %d", got)
	}

	p, s, hear := start()
	stampOf(t, p(20, 100, "abcd"))
	s(24, 100, "abcd")
	p(30, 108, "ijkl")
	stampOf(t, s(30, 108, "ijkl"))
	if got := hear(10, 104, 104, 108); got != 10 {
		t.Errorf("the repetition was needless: the echo %d", got)
	}
	if got := hear(20, 108); got != 24 {
		t.Errorf("the secondary's guest repeated later: the echo %d", got)
	}

	p, s, hear = start()
	stampOf(t, p(20, 100, "abcd"))
	s(400, 100, "abcd")
	if got := hear(20, 108); got != 20 {
		t.Errorf("the secondary's guest has another clock: the echo %d", got)
	}
	if got := hear(10, 108); got != 10 {
		t.Errorf("the peer has all of that: the echo %d", got)
	}
}

// A loss is over when the peer has all that had been sent at the first repetition. What is
// repeated later is another loss, and that may turn out to be none.
func TestALossEndsWithTheLastByteThatHadBeenSent(t *testing.T) {
	_, p, s, hear := stamps(t)
	both := func(at, seq uint32, text string) {
		t.Helper()
		p(at, seq, text)
		stampOf(t, s(at, seq, text))
	}
	both(10, 100, "abcd")
	both(11, 104, "efgh")
	stampOf(t, p(20, 100, "abcd"))
	if got := hear(20, 108); got != 20 {
		t.Errorf("the peer has it: the echo %d", got)
	}
	both(30, 108, "ijkl")
	both(31, 112, "mnop")
	hear(31, 108, 112, 116)
	stampOf(t, p(40, 108, "ijkl"))
	if got := hear(30, 112, 112, 116); got != 30 {
		t.Errorf("the next repetition was needless: the echo %d", got)
	}
}

// What the peer signs the guest drops if it is changed, the echo of a timestamp included.
func TestWhatThePeerSignsIsNotChanged(t *testing.T) {
	const signature = "\x13\x12a signature of i\x01\x01"
	for _, signed := range []bool{false, true} {
		sign := ""
		if signed {
			sign = signature
		}
		x, tell, say := opened(t, nil)
		at := func(stamp, seq uint32, text string) ackSeg {
			a := data(seq, text)
			a.opts = wireTimes(stamp, 7) + sign
			return a
		}
		for _, a := range []ackSeg{at(10, 100, "abcd"), at(11, 104, "efgh")} {
			tell(a)
			say(a)
		}
		tell(at(20, 100, "abcd"))
		tell(at(30, 104, "efgh"))
		f := answer(104, wireTimes(7, 20)+sign)
		was := bytes.Clone(f)
		if changed := x.Inbound(compare.Frame{Data: f}); changed == signed || changed == bytes.Equal(f, was) {
			t.Errorf("signed %t: it is changed: %t, from\n%x to\n%x", signed, changed, was, f)
		}
	}
}
