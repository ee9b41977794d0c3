package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A departure is a guest on its way to the other host.
type departure struct {
	r      *roamer
	hello  moveHello
	source *migrate.Source
	link   *link // the first connection

	asked  int  // how often the other host was asked since an order to end
	byHand bool // a person has said that the guest is to go on here

	done chan struct{} // closed when it has been decided who has the guest
	err  error         // nil: the other host, if not this one runs it on
}

var (
	errLeft     = errors.New("the other host does not answer")
	errDecided  = errors.New("the other host knows how it has ended")
	errNowhere  = errors.New("the guest stands still, and where it is to go on is for a person to say")
	errNoMemory = errors.New("this machine cannot run before its memory is there")
)

// depart begins to move the guest. An error leaves it here.
func (r *roamer) depart() (*departure, error) {
	d := &departure{r: r, done: make(chan struct{}), hello: r.describe()}
	d.hello.Move = rand.Text()
	var err error
	if d.hello.CPU, _, err = r.solo.guest.cpu(); err != nil {
		return nil, err
	}
	var reg vmstate.Registry
	saver := ram.NewLazySaver(r.solo.guest.Blocks(), r.solo.guest, ram.SaverConfig{})
	if err := errors.Join(saver.Register(&reg), r.solo.register(&reg)); err != nil {
		return nil, err
	}
	l, answer, err := callPeer(r.life, r.o, r.secure, d.hello)
	if err == nil && answer.State != moveGoesOn {
		err = fmt.Errorf("the other host refuses: %s", answer.Refused)
	}
	if err != nil {
		return nil, err
	}
	d.link = l
	d.source = migrate.NewSource(migrate.SourceConfig{
		VM: (*roamingVM)(r), State: &reg, Memory: saver, Blocks: r.solo.guest.Blocks(),
		Machine: machineType, Postcopy: d.hello.Postcopy, MaxDowntime: r.o.maxDowntime, Reconnect: d.reconnect,
	})
	r.p.phase("moving", "to %s", r.o.peer)
	r.group.Go(func() {
		defer close(d.done)
		stop := r.report(d.line)
		d.err = d.run()
		stop()
	})
	return d, nil
}

// run moves the guest, and returns when it is known where that is.
func (d *departure) run() error {
	err := d.source.Run(d.r.life, d.link)
	if errors.Is(err, migrate.ErrUnknown) || errors.Is(err, migrate.ErrPaused) {
		err = d.find(err)
	}
	if err != nil {
		return err
	}
	s := d.source.Stats
	d.r.p.note(func(sum *summary) {
		sum.Move = &moveFigures{
			Downtime: float64(s.Paused.Microseconds()) / 1000, Passes: s.Passes, Postcopy: s.Postcopy,
			Recovered: s.Recovered, Bytes: d.source.Progress().Sent,
		}
	})
	d.r.p.phase("moved", "the guest runs on the other host; it stood still here for %v until that had its devices, and %v were sent",
		s.Paused.Round(time.Microsecond), cli.Bytes(d.source.Progress().Sent>>10<<10))
	return nil
}

// reconnect calls the other host again, until it answers, a person has the guest go on
// here, or an order to end has come some time ago.
func (d *departure) reconnect(ctx context.Context, broken error) (migrate.Conn, error) {
	d.drainOrder()
	d.r.p.phase("broken", "the guest runs on the other host, and a part of its memory is here: %s; "+
		"the other host is called until it answers; if it is dead, Ctrl-A g lets the guest go on here, from where it stood still", oneLine(broken))
	hello := d.hello
	hello.Again = true
	for {
		l, answer, err := callPeer(ctx, d.r.o, d.r.secure, hello)
		switch {
		case err == nil && answer.State == moveGoesOn:
			d.r.p.phase("recovered", "over another connection")
			return l, nil
		case err == nil:
			return nil, errDecided
		}
		select {
		case <-d.r.goOn:
			d.byHand = true
			return nil, errLeft
		case <-time.After(retry):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if d.leaves() {
			return nil, errLeft
		}
	}
}

// drainOrder forgets what a person has said before there was anything to decide.
func (d *departure) drainOrder() {
	select {
	case <-d.r.goOn:
	default:
	}
}

// leaves counts a question, and reports whether it was the last one.
func (d *departure) leaves() bool {
	if d.r.ordered.Err() == nil {
		return false
	}
	d.asked++
	return d.asked >= lastQuestions
}

// lastQuestions is how often the other host is asked after an order to end.
const lastQuestions = 25

// find asks the other host how it has ended, until it says so, or a person does.
func (d *departure) find(lost error) error {
	d.r.p.phase("undecided", "the guest stands still here, and the other host, which may have it, is asked: %s", oneLine(lost))
	hello, told := d.hello, false
	hello.Again = true
	if d.byHand {
		return d.stays(lost)
	}
	d.drainOrder()
	for {
		l, answer, err := callPeer(d.r.life, d.r.o, d.r.secure, hello)
		if l != nil {
			l.Close() // it waits for memory that is not here in order: it gives up, and is asked again
		}
		switch {
		case err != nil || answer.State == moveGoesOn:
		case answer.State == movedHere:
			return nil
		case answer.State == movedNot:
			return errors.Join(fmt.Errorf("the guest runs on here: %w", lost), (*roamingVM)(d.r).Resume(d.r.life))
		case answer.State == moveUnknown && !told:
			told = true
			d.r.p.phase("lost", "gokvm there has been started anew: the guest, if it had it, is gone; Ctrl-A g lets it go on here, from where it stood still")
		}
		goOn := d.r.goOn
		if err == nil && !told { // the other host answers, and will say who has it
			goOn = nil
		}
		select {
		case <-goOn:
			return d.stays(lost)
		case <-d.r.life.Done():
			return fmt.Errorf("%w: %w", errNowhere, lost)
		case <-time.After(retry):
		}
		if d.leaves() {
			return fmt.Errorf("%w: %w", errNowhere, lost)
		}
	}
}

// stays lets the guest go on here, by a person's word.
func (d *departure) stays(lost error) error {
	return errors.Join(fmt.Errorf("the guest runs on here, as ordered: %w", lost), (*roamingVM)(d.r).Resume(d.r.life))
}

// cancel keeps the guest here if it is not on its way yet, and changes nothing otherwise:
// where a connection breaks later, another is made.
func (d *departure) cancel() {
	switch d.source.Progress().Status {
	case migrate.StatusSetup, migrate.StatusActive:
		d.link.Close()
	}
}

// line returns how far the move has come, for a line of progress.
func (d *departure) line() string {
	p := d.source.Progress()
	return fmt.Sprintf("%s: %d passes, %v sent, %v left%s", p.Status, p.Passes, cli.Bytes(p.Sent>>10<<10), cli.Bytes(p.Remaining>>10<<10), again(p.Recovered))
}

// again returns in words how many connections came after the first.
func again(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", connection %d", n+1)
}
