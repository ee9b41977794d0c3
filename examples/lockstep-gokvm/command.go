package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/cli"
)

// commandTime bounds one run of -arbiter-command; commandPipe how long its output may
// stay open after its end.
const (
	commandTime = time.Minute
	commandPipe = time.Second
)

// run asks the command, if there is one and it has not said yes already. Its yes is
// kept: it is asked once for a generation, unless it gave no answer.
func (b *between) run(ctx context.Context, after uint64) error {
	b.mu.Lock()
	yes := b.yes == after+1
	b.mu.Unlock()
	if b.command == "" || yes {
		return nil
	}
	mode, epoch, cause := b.about()
	limit, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(limit, "sh", "-c", b.command)
	cmd.Env = append(os.Environ(), "LOCKSTEP_MODE="+string(mode), fmt.Sprintf("LOCKSTEP_EPOCH=%d", epoch), "LOCKSTEP_HOST="+b.host,
		fmt.Sprintf("LOCKSTEP_GENERATION=%d", after+1), "LOCKSTEP_CAUSE="+oneLine(errors.New(cause)))
	// When the shell ends, so have the processes that it waits for. Others that still hold
	// the output open are not waited for.
	cli.Together(cmd)
	cmd.WaitDelay = commandPipe
	var said head
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended with 0
	}
	if err != nil {
		err = fmt.Errorf("-arbiter-command %s: %w: %s", b.command, err, strings.TrimSpace(string(said)))
		if limit.Err() == nil && answered(cmd.ProcessState) {
			return errors.Join(failover.ErrRefused, err)
		}
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.yes = after + 1
	return nil
}

// answered reports whether a command that failed has said no: it was found, could be
// run, and ended by itself.
func answered(s *os.ProcessState) bool {
	return s != nil && s.Exited() && s.ExitCode() != 126 && s.ExitCode() < 127
}

// head keeps the beginning of what is written to it.
type head []byte

const maxHead = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), maxHead-len(*h))]...)
	return len(p), nil
}
