package qmp

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// maxInBand is how many commands in band a Client with out-of-band execution has
	// with the monitor at a time: a QEMU that is kept by the first of them reads on while
	// less than 8 others wait, and with one more it hears no command out of band either.
	maxInBand = 7
	// maxUnanswered bounds what is remembered of commands without an answer: of a monitor that
	// says nothing any more the first ones are what an operator asks for.
	maxUnanswered = 64
)

// unanswered is a command that was sent, and whose answer has not come. Its caller may
// have given up.
type unanswered struct {
	id      int
	command string
	at      time.Time
	oob     bool
}

// Unanswered returns the command that has waited for the longest time for its answer, and
// since when, whether its caller still waits or has given up; "" if there is none. An answer
// is noticed when somebody waits for one, or for an event. It may be called from any goroutine.
func (c *Client) Unanswered() (command string, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.owed) == 0 {
		return "", time.Time{}
	}
	return c.owed[0].command, c.owed[0].at
}

// silence says for how long a command has had no answer, and which one before it has none
// either.
func (c *Client) silence(began time.Time) string {
	said := fmt.Sprintf("no answer after %v", since(began))
	if first, at := c.Unanswered(); first != "" && at.Before(began) {
		said += fmt.Sprintf(", and none to %s after %v", first, since(at))
	}
	return said
}

// since is time.Since for people.
func since(at time.Time) time.Duration {
	d := time.Since(at)
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// enter notes that a command is about to be sent, unless it would keep the monitor from
// reading one out of band. The caller holds writing. free is closed when there is an answer.
func (c *Client) enter(u unanswered) (ok bool, free <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.OOB && !u.oob {
		n := 0
		for _, o := range c.owed {
			if !o.oob {
				n++
			}
		}
		if n >= maxInBand {
			return false, c.paid
		}
	}
	if len(c.owed) < maxUnanswered {
		c.owed = append(c.owed, u)
	}
	return true, nil
}

// withdraw forgets a command that was not sent.
func (c *Client) withdraw(id int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed = slices.DeleteFunc(c.owed, func(o unanswered) bool { return o.id == id })
}

// answered forgets a command whose answer has come, and those in band before one in band,
// whose answers were lost: a monitor gives them in the order of the commands. c.mu is held.
func (c *Client) answered(id int) {
	at := slices.IndexFunc(c.owed, func(o unanswered) bool { return o.id == id })
	if at < 0 {
		return
	}
	if c.owed[at].oob {
		c.owed = slices.Delete(c.owed, at, at+1)
	} else {
		n := 0
		c.owed = slices.DeleteFunc(c.owed, func(o unanswered) bool { n++; return n <= at+1 && !o.oob })
	}
	close(c.paid)
	c.paid = make(chan struct{})
}

// turn waits for the right to write, and notes the command.
func (c *Client) turn(ctx context.Context, u unanswered) error {
	for {
		select {
		case c.writing <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		u.at = time.Now()
		ok, free := c.enter(u)
		if ok {
			return nil
		}
		<-c.writing
		select {
		case <-free:
			continue
		case <-ctx.Done():
			return ctx.Err()
		case c.reading <- struct{}{}:
		}
		var err error
		select {
		case <-free:
		default:
			err = c.read(ctx)
		}
		<-c.reading
		if err != nil {
			return err
		}
	}
}
