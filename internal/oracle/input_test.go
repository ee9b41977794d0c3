package oracle

import (
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
)

// conversation tells vCPU 1 of a guest n words and gives the answers to an oracle
// whose guest has said as much as it takes to be clean.
func conversation(t *testing.T, n int) (*Oracle, [][]byte, []History) {
	t.Helper()
	frames, _ := emit(t, small, 10)
	o, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		o.Frame(f)
	}
	mem := make([]byte, small.MemSize())
	if err := guest.Load(mem, small); err != nil {
		t.Fatal(err)
	}
	var answers [][]byte
	for range n {
		in := o.Next(1)
		if again := o.Next(1); again != in {
			t.Fatalf("%+v and then %+v without an answer", in, again)
		}
		if _, _, err := guest.PutInput(mem, 1, in.AppendFrame(nil)); err != nil {
			t.Fatal(err)
		}
		at, _, _, err := guest.Answer(mem, 1)
		if err != nil || at == 0 {
			t.Fatalf("%+v was not answered (%v)", in, err)
		}
		b, err := guest.Emitted(mem, at)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, append([]byte(nil), b...))
		if !o.Reply(b) || o.Reply(frames[0]) {
			t.Fatal("an answer and a round are confused")
		}
	}
	_, histories := emit(t, small, 10)
	for v := range histories {
		if histories[v].Input, histories[v].Inputs, err = guest.LastInput(mem, v); err != nil {
			t.Fatal(err)
		}
	}
	return o, answers, histories
}

func TestAnsweredInputsThatTheSurvivorHasAreClean(t *testing.T) {
	o, answers, histories := conversation(t, 20)
	o.Reply(answers[3]) // again
	o.Finish(histories)
	if !o.Clean() || o.Answered != 20 {
		t.Errorf("%+v", o.Verdict)
	}
}

func TestASurvivorThatHasNotTakenWhatWasAnsweredIsAContradiction(t *testing.T) {
	o, _, histories := conversation(t, 20)
	_, _, before := conversation(t, 19)
	histories[1].Input, histories[1].Inputs = before[1].Input, before[1].Inputs
	o.Finish(histories)
	if o.Clean() || o.Contradicted != 1 {
		t.Errorf("%+v", o.Verdict)
	}
}

func TestASurvivorThatRemembersSomethingElseIsCorrupted(t *testing.T) {
	o, _, histories := conversation(t, 20)
	histories[1].Inputs++
	histories[0].Input = 1 << 40
	o.Finish(histories)
	if o.Corrupted != 2 {
		t.Errorf("%+v", o.Verdict)
	}
}

func TestAnAnswerThatDoesNotFollowIsCorrupted(t *testing.T) {
	for _, at := range []int{16, 24, 32} { // the ends of m, y and v, from behind
		o, answers, _ := conversation(t, 3)
		bad := append([]byte(nil), answers[2]...)
		bad[len(bad)-32+at-1] ^= 0x40
		if !o.Reply(bad) || o.Corrupted != 1 {
			t.Errorf("byte %d: %+v", at, o.Verdict)
		}
	}
}
