package trial

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo"
)

// serving runs a witness and returns its address.
func serving(t *testing.T, w *witness) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() { w.serve(l) })
	t.Cleanup(func() { l.Close(); group.Wait() })
	return l.Addr().String()
}

func TestOnlyOneSideOfAGenerationGoesOn(t *testing.T) {
	var heard []Answer
	w := &witness{generation: 3, log: func(c Claim, a Answer) { heard = append(heard, a) }}
	address := serving(t, w)
	ask := func(side string, generation uint64) error {
		return AskWitness(address, side, generation)(t.Context(), colo.Claim{Cause: io.EOF})
	}
	if err := ask(Secondary, 3); err != nil {
		t.Errorf("the first who asks: %v", err)
	}
	if err := ask(Primary, 3); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "the secondary goes on") {
		t.Errorf("the other: %v", err)
	}
	if err := ask(Secondary, 3); err != nil {
		t.Errorf("the first again: %v", err)
	}
	if err := ask(Secondary, 2); !errors.Is(err, errRefused) {
		t.Errorf("an old generation: %v", err)
	}
	if len(heard) != 4 {
		t.Errorf("%d answers logged", len(heard))
	}
}

func TestBothAskingAtOnceGetDifferentAnswers(t *testing.T) {
	for range 20 {
		address := serving(t, &witness{generation: 1})
		var group sync.WaitGroup
		errs := make([]error, 2)
		for i, side := range []string{Primary, Secondary} {
			group.Go(func() { errs[i] = AskWitness(address, side, 1)(t.Context(), colo.Claim{}) })
		}
		group.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("primary: %v, secondary: %v", errs[0], errs[1])
		}
	}
}

func TestNoAnswerIsARefusal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // takes the question and says nothing
		c, err := l.Accept()
		if err == nil {
			io.ReadAtLeast(c, make([]byte, 1), 1)
			cancel()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	if err := AskWitness(address, Primary, 1)(ctx, colo.Claim{}); err == nil {
		t.Error("silence is a yes")
	}
	l.Close()
	if err := AskWitness(address, Primary, 1)(t.Context(), colo.Claim{}); err == nil {
		t.Error("nobody there is a yes")
	}
}
