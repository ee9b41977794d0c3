package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/qemutest"
)

func TestAnInterruptIsToldByItsName(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := interrupted(ctx, io.EOF); err != io.EOF {
		t.Errorf("while nothing has interrupted it: %v", err)
	}
	cancel(errors.New("terminated signal received"))
	const told = "interrupted: terminated signal received"
	for _, c := range []struct {
		err  error
		want string
	}{
		{ctx.Err(), told},
		{context.Cause(ctx), told},
		{&colo.Error{Op: "wait", Err: ctx.Err()}, told},
		{io.EOF, "EOF"},
		{fmt.Errorf("the state of the guest is lost: %w", io.ErrShortWrite), "the state of the guest is lost: short write"},
		{errors.Join(ctx.Err(), io.ErrShortWrite), "context canceled\nshort write"},
	} {
		if got := interrupted(ctx, c.err); got.Error() != c.want {
			t.Errorf("%v is told as %q, want %q", c.err, got, c.want)
		}
	}
	if err := interrupted(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestAStandbyThatIsInterruptedWhileItWaitsSaysSo(t *testing.T) {
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-insecure", "-state", qemutest.Dir(t))
	s.object("listening", 0)
	s.cancel()
	s.ends(exitInterrupted)
	if r, said := s.summary(), s.errors(); r.Error != "interrupted" || said != "lockstep-qemu: interrupted\n" {
		t.Errorf("it says %q in JSON and %q to a person", r.Error, said)
	}
}

// A session that the end of the program has ended has not been lost.
func TestAStandbyThatIsInterruptedInASessionHasLostNothing(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-listen", "unix:"+dir+"/s", "-insecure", "-state", dir)
	eventually(t, "it listens", func() bool { return strings.Contains(s.output(), "waiting     for a primary") })
	replica(t, dir+"/s")
	eventually(t, "it has checkpoints", func() bool { return strings.Contains(s.output(), "checkpoint") })
	s.cancel()
	s.ends(exitInterrupted)
	if said := s.output(); strings.Contains(said, "\nlost ") {
		t.Errorf("it says: %s", said)
	}
}
