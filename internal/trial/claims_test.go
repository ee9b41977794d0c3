package trial

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

func TestWhatTheArbiterAnswersIsTold(t *testing.T) {
	arbiter, err := sharedfile.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var said []Claimed
	a := Heard(arbiter, func(c Claimed) { said = append(said, c) })
	claim := failover.Claim{Holder: Primary, Token: "p", Term: time.Minute}
	if g, err := a.Acquire(t.Context(), claim); err != nil || g.Generation != 1 {
		t.Fatal(g, err)
	}
	claim.After, claim.Note = 1, "checkpoint 5"
	if g, err := a.Acquire(t.Context(), claim); err != nil || g.Generation != 2 {
		t.Fatal(g, err)
	}
	if _, err := a.Acquire(t.Context(), failover.Claim{Holder: Secondary, Token: "s", After: 1, Term: time.Minute}); !errors.Is(err, failover.ErrRefused) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Acquire(ctx, failover.Claim{Holder: Secondary, Token: "s", After: 2, Term: time.Minute}); err == nil {
		t.Fatal("granted")
	}
	if len(said) == 3 && said[2].Answer.Reason == "" {
		t.Error("refused without a reason")
	} else if len(said) == 3 {
		said[2].Answer.Reason = ""
	}
	if diff := cmp.Diff([]Claimed{
		{Claim{Side: Primary}, Answer{Granted: true, Generation: 1}},
		{Claim{Side: Primary, Generation: 1, Note: "checkpoint 5"}, Answer{Granted: true, Generation: 2}},
		{Claim{Side: Secondary, Generation: 1}, Answer{}},
	}, said); diff != "" {
		t.Error(diff)
	}
}
