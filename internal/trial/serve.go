package trial

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
)

// SideArgument makes a process that a run starts with it one of the sides.
const SideArgument = "lockstep-side"

// A Parent is the process that has started this one, as this one sees it.
type Parent struct {
	Config   SideConfig
	Commands <-chan Command
	Reports  *Reporter
}

// Serve is the whole life of a process that a run has started: configuration and commands come
// from in, reports go to out. It calls life, whose context ends with the parent
// (ErrOrphan) or with a call of fail, and returns when that has.
func Serve(in io.Reader, out io.Writer, life func(ctx context.Context, fail context.CancelCauseFunc, p *Parent) error) error {
	dec := json.NewDecoder(bufio.NewReader(in))
	commands := make(chan Command)
	p := &Parent{Commands: commands}
	if err := dec.Decode(&p.Config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	p.Reports = NewReporter(out, p.Config.gather())
	defer p.Reports.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() { // ends with the process, or with the parent
		for {
			var c Command
			if err := dec.Decode(&c); err != nil {
				cancel(ErrOrphan)
				return
			}
			select {
			case commands <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	return life(ctx, cancel, p)
}
