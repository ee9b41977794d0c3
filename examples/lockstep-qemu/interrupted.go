package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gocolo/lockstep/event"
)

// interrupted returns what is told of err. An error with nothing but the end of ctx at its
// root becomes one that says "interrupted", and which signal it was; any other, and one that
// was joined with another, is returned as it is.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() == nil || err == nil {
		return err
	}
	root := err
	for next := errors.Unwrap(root); next != nil; next = errors.Unwrap(root) {
		root = next
	}
	switch cause := context.Cause(ctx); {
	case root != ctx.Err() && root != cause:
		return err
	case cause == context.Canceled: // by the program that runs the command
		return errors.New("interrupted")
	default:
		return fmt.Errorf("interrupted: %w", cause)
	}
}

// interruptedBy reports whether r says that a session has ended by nothing but the end of ctx.
func interruptedBy(ctx context.Context, r event.Record) bool {
	e, ok := r.Event.(event.COLOExit)
	return ok && ctx.Err() != nil && strings.HasSuffix(e.Error, ": "+ctx.Err().Error())
}
