package trial

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// A crew has the processes that a run has started, and receives what they report. It belongs
// to one goroutine.
type crew struct {
	inbox   chan message
	readers sync.WaitGroup
	sides   map[string]*process // by their names; one that has ended stays until there is another
	before  []*process          // that others have taken the place of
}

func newCrew() crew { return crew{inbox: make(chan message, 64), sides: make(map[string]*process)} }

// start starts a process, in the place of the one of the same name.
func (c *crew) start(cfg SideConfig) error {
	p, err := start(cfg, c.inbox, &c.readers)
	if err != nil {
		return err
	}
	if old := c.sides[cfg.Side]; old != nil {
		c.before = append(c.before, old)
	}
	c.sides[cfg.Side] = p
	return nil
}

// PIDs returns the processes that the run has started last, by their sides.
func (c *crew) PIDs() map[string]int {
	pids := make(map[string]int)
	for side, p := range c.sides {
		pids[side] = p.pid()
	}
	return pids
}

// lastWords is how long a side may take to end when a run has failed.
const lastWords = time.Second

// end ends all processes and returns when the last has ended: at once, or after it has given
// them a moment to report. It drops what they still report.
func (c *crew) end(atOnce bool) {
	for _, p := range c.sides {
		p.in.Close() // the end of the input is an order to end
	}
	kill := func() {
		for _, p := range c.sides {
			p.kill()
		}
	}
	if atOnce {
		kill()
	} else {
		// A side may be about to report the fault of which the other has seen only the effect.
		defer time.AfterFunc(lastWords, kill).Stop()
	}
	go func() { c.readers.Wait(); close(c.inbox) }()
	for range c.inbox {
	}
}

// explain adds to the error of a run what the sides have said.
func (c *crew) explain(err error) error {
	for side, p := range c.sides {
		said := p.stderr.String()
		if err != nil && said != "" && said != ErrOrphan.Error() && !strings.Contains(err.Error(), said) {
			err = fmt.Errorf("%w\n%s said: %s", err, called(side), said)
		}
	}
	return err
}

// A wait is how a run waits for its processes.
type wait struct {
	handle   func(message) error // what comes meanwhile
	limit    time.Duration       // what does not come in time is an error
	progress func() int          // a change of it begins the limit anew
	look     func()              // is called now and then
}

// await handles what comes until done.
func (c *crew) await(ctx context.Context, w wait, what string, done func() bool) error {
	limit := time.NewTimer(w.limit)
	defer limit.Stop()
	// Frames do not go through the inbox, so done is also asked now and then.
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	have := w.progress()
	for !done() {
		select {
		case m := <-c.inbox:
			if err := w.handle(m); err != nil {
				return err
			}
			if n := w.progress(); n != have {
				have = n
				limit.Reset(w.limit)
			}
		case <-look.C:
			w.look()
		case <-limit.C:
			return fmt.Errorf("waited in vain for %s", what)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// sleep waits, and goes on listening.
func (c *crew) sleep(ctx context.Context, d time.Duration, handle func(message) error) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case m := <-c.inbox:
			if err := handle(m); err != nil {
				return err
			}
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
