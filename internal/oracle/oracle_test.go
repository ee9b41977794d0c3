package oracle

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
)

var small = guest.Params{VCPUs: 2, Pages: 8, Touch: 2, TSCPerMille: 300, Seed: 7}

// emit returns the frames of the first n rounds of each vCPU, alternating, and
// the histories that the guest's memory then has.
func emit(t *testing.T, p guest.Params, n int) ([][]byte, []History) {
	t.Helper()
	mem := make([]byte, p.MemSize())
	if err := guest.Load(mem, p); err != nil {
		t.Fatal(err)
	}
	regs := make([]guest.Regs, p.VCPUs)
	for v := range regs {
		var err error
		if regs[v], err = guest.Boot(mem, v); err != nil {
			t.Fatal(err)
		}
	}
	clock := uint64(1000)
	var frames [][]byte
	for range n {
		for v := range regs {
			addr, err := guest.Round(mem, &regs[v], func() uint64 { clock += 17; return clock }, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := guest.Emitted(mem, addr)
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, bytes.Clone(b))
		}
	}
	histories, err := Remembered(mem, p.VCPUs)
	if err != nil {
		t.Fatal(err)
	}
	return frames, histories
}

// judged gives frames to a new oracle and returns its verdict.
func judged(t *testing.T, p guest.Params, frames [][]byte, histories []History) Verdict {
	t.Helper()
	o, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		o.Frame(f)
	}
	o.Finish(histories)
	return o.Verdict
}

func TestWhatARightGuestSendsIsClean(t *testing.T) {
	frames, histories := emit(t, small, 100)
	v := judged(t, small, frames, histories)
	if !v.Clean() || v.Released != 200 || v.Duplicated != 0 {
		t.Errorf("%+v", v)
	}
	slices.Reverse(frames)
	if r := judged(t, small, frames, histories); r != v {
		t.Errorf("in reverse order: %+v, want %+v", r, v)
	}
}

func TestNothingSentIsNotClean(t *testing.T) {
	if v := judged(t, small, nil, make([]History, 2)); v.Clean() {
		t.Errorf("%+v", v)
	}
}

func TestTheLastRoundMayBeStoppedBeforeItsFrame(t *testing.T) {
	frames, histories := emit(t, small, 50)
	v := judged(t, small, frames[:98], histories)
	if !v.Clean() || v.Released != 98 {
		t.Errorf("%+v", v)
	}
	if v := judged(t, small, frames[:96], histories); v.Lost != 2 {
		t.Errorf("two rounds of each vCPU have not left, of which one may: %+v", v)
	}
}

func TestAFrameSentTwiceIsCountedAndHarmless(t *testing.T) {
	frames, histories := emit(t, small, 50)
	v := judged(t, small, append(frames, frames[10:30]...), histories)
	if !v.Clean() || v.Duplicated != 20 || v.Released != 100 {
		t.Errorf("%+v", v)
	}
}

func TestAFrameThatNeverLeftIsLost(t *testing.T) {
	frames, histories := emit(t, small, 50)
	v := judged(t, small, slices.Delete(slices.Clone(frames), 40, 44), histories)
	if v.Clean() || v.Lost != 4 || v.Contradicted != 0 || v.Corrupted != 0 || v.Released != 96 {
		t.Errorf("%+v", v)
	}
}

func TestAFrameWithAnotherHashIsCorrupted(t *testing.T) {
	frames, histories := emit(t, small, 50)
	bad := slices.Clone(frames)
	bad[20] = bytes.Clone(bad[20])
	bad[20][len(bad[20])-12] ^= 1 // of h
	v := judged(t, small, bad, histories)
	if v.Clean() || v.Corrupted != 1 || v.Contradicted != 1 || v.First == "" {
		t.Errorf("%+v, want one corrupted and the survivor to contradict it", v)
	}
	bad[20] = frames[20][:len(frames[20])-1]
	if v := judged(t, small, bad, histories); v.Corrupted != 1 || v.Lost != 1 {
		t.Errorf("a cut frame: %+v", v)
	}
}

// Two guests that take in their own time-stamp counters are both right, and
// differ: only one of them may be seen.
func TestTheOtherGuestsVersionOfARoundIsAContradiction(t *testing.T) {
	frames, histories := emit(t, small, 50)
	other := small
	other.TSCPerMille = 0
	wrong, _ := emit(t, other, 50)
	v := judged(t, small, append(frames, wrong[60:70]...), histories)
	if v.Clean() || v.Contradicted != 10 || v.Duplicated != 0 {
		t.Errorf("%+v", v)
	}
}

func TestAMemoryThatLostAPageIsCorruptedForGood(t *testing.T) {
	p := guest.Params{VCPUs: 1, Pages: 4, Touch: 4}
	mem := make([]byte, p.MemSize())
	if err := guest.Load(mem, p); err != nil {
		t.Fatal(err)
	}
	regs, err := guest.Boot(mem, 0)
	if err != nil {
		t.Fatal(err)
	}
	old := bytes.Clone(mem)
	var frames [][]byte
	for n := range 40 {
		if n == 20 { // the takeover puts a page back that is one round old
			page := len(mem) - guest.PageSize
			copy(mem[page:], old[page:])
		}
		copy(old, mem)
		addr, err := guest.Round(mem, &regs, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := guest.Emitted(mem, addr)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, bytes.Clone(b))
	}
	histories, err := Remembered(mem, 1)
	if err != nil {
		t.Fatal(err)
	}
	// The survivor agrees with itself; only the model can tell.
	if v := judged(t, p, frames, histories); v.Corrupted != 20 || v.Contradicted != 0 {
		t.Errorf("%+v, want 20 corrupted", v)
	}
}

func TestASurvivorThatForgotIsAContradiction(t *testing.T) {
	frames, _ := emit(t, small, 50)
	_, behind := emit(t, small, 45)
	v := judged(t, small, frames, behind)
	if v.Clean() || v.Contradicted != 10 {
		t.Errorf("%+v, want the last five rounds of both vCPUs", v)
	}
	if v := judged(t, small, frames, behind[:1]); v.Clean() {
		t.Error("a vCPU without a history is clean")
	}
}

func TestRoundsOlderThanTheSurvivorsMemoryAreNotHeldAgainstIt(t *testing.T) {
	frames, histories := emit(t, small, 50)
	for v := range histories {
		histories[v].First += 30
		histories[v].Hashes = histories[v].Hashes[30:]
	}
	if v := judged(t, small, frames, histories); !v.Clean() {
		t.Errorf("%+v", v)
	}
}

func TestNonsenseIsCorruptedAndBounded(t *testing.T) {
	o, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	frames, _ := emit(t, small, 1)
	far := bytes.Clone(frames[0])
	far[len(far)-24] = 0x7f // the top of n
	o.Frame(far)
	o.Frame(nil)
	o.Frame([]byte("hello"))
	if o.Corrupted != 3 || len(o.chains[0].early) != 0 {
		t.Errorf("%+v, %d early", o.Verdict, len(o.chains[0].early))
	}
}
