package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/migrate"
)

// A guest that may have run elsewhere is not given all of its memory there once more.
func TestWhereverAGuestMayHaveRunItIsSaid(t *testing.T) {
	for _, c := range []struct {
		sent error
		want bool
	}{
		{nil, true},
		{migrate.ErrUnknown, true},
		{fmt.Errorf("the link: %w", migrate.ErrPaused), true},
		{errors.New("it does not do postcopy"), false},
	} {
		if got := mayHaveRun(c.sent); got != c.want {
			t.Errorf("%v: %t", c.sent, got)
		}
	}
}

// A QEMU that waits for a guest which does not come is not waited for.
func TestAQEMUWhoseGuestDoesNotComeIsNotWaitedFor(t *testing.T) {
	q := &process{qmp: "unix:" + socket.Dir(t) + "/none", done: make(chan struct{}), sent: make(chan error, 1), follows: true, broken: make(chan struct{})}
	close(q.broken)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if state, err := q.running(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("%q, %v", state, err)
	}
}
