package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
)

// A -fence is a command of the operator's that succeeds when the primary surely does not run any more. A guardian has
// one for a QEMU that hangs (guardian_fence.go), a standby for a primary that is silent (arbitrate.go).

// fenceLimit is how long one may take. One that does not end has failed: nothing is known of the primary then.
const fenceLimit = time.Minute

// A fencer runs such a command with what is to be in its environment. Nil: shell.
type fencer func(ctx context.Context, command string, env ...string) error

func (f fencer) run(ctx context.Context, command string, env ...string) error {
	if f == nil {
		f = shell
	}
	return f(ctx, command, env...)
}

// shell runs a -fence. Its error has what the command has printed.
func shell(ctx context.Context, command string, env ...string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	cli.Together(cmd) // what it has started must not go on when it has failed
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("it has not ended by itself: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("-fence: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
