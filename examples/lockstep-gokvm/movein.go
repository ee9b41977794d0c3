package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gocolo/lockstep/examples/internal/strangers"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// An arrival is a guest on its way to this host, or that has come, or not.
type arrival struct {
	r     *roamer
	hello moveHello
	came  chan struct{} // capacity one: there is a next, when link has broken

	// With r.mu held.
	link  *link  // the connection that is in use
	next  *link  // the last that the source has made since; nil: none
	state string // of a moveAnswer; "": it is not known yet whether the guest is here
}

// maxArrivals is how many arrivals that have ended are remembered.
const maxArrivals = 64

// listen opens the port at which guests arrive.
func (r *roamer) listen() (net.Listener, error) {
	l, err := (&net.ListenConfig{KeepAliveConfig: linkAlive}).Listen(r.life, "tcp", r.o.on)
	if err != nil {
		return nil, cli.Listening("-listen", err)
	}
	r.p.phase("listening", "on %v", l.Addr())
	return l, nil
}

// maxVisitors is how many connections may say what they are for at one time. One more ends
// the oldest, so that who says nothing keeps no guest out.
const maxVisitors = 64

// accept takes connections until the listener is closed.
func (r *roamer) accept(l net.Listener) {
	room := strangers.Room{Max: maxVisitors}
	for {
		raw, err := room.Accept(r.life, l)
		if err != nil {
			return
		}
		r.group.Go(func() {
			l, hello, err := visited(r.life, r.o, r.secure, raw)
			known := room.Leave(raw)
			switch {
			case err != nil:
			case known:
				r.visit(l, hello)
			default:
				l.Close() // its connection has been ended just now
			}
		})
	}
}

// visit carries out what a connection asks for, or answers why not.
func (r *roamer) visit(l *link, hello moveHello) {
	if hello.Version != moveVersion || hello.Guest != r.o.name || hello.Machine != machineType {
		r.refuse(l, moveUnknown, fmt.Errorf("the guest is %q on a %s here, of version %d", r.o.name, machineType, moveVersion))
		return
	}
	r.mu.Lock()
	a := r.arrivals[hello.Move]
	if a == nil && !hello.Again && !r.busy {
		r.busy = true
		a = &arrival{r: r, hello: hello, came: make(chan struct{}, 1), link: l}
		r.remember(a)
		r.mu.Unlock()
		r.arriving <- a
		return
	}
	r.mu.Unlock()
	switch {
	case !hello.Again:
		r.refuse(l, movedNot, errors.New("there is a guest already, or one is arriving"))
	case a == nil:
		r.refuse(l, moveUnknown, errors.New("nothing is known of it"))
	default:
		a.again(l)
	}
}

// remember keeps an arrival, and forgets what has ended long ago. r.mu is held.
func (r *roamer) remember(a *arrival) {
	r.arrivals[a.hello.Move] = a
	r.order = append(r.order, a.hello.Move)
	if len(r.order) > maxArrivals {
		delete(r.arrivals, r.order[0])
		r.order = r.order[1:]
	}
}

// refuse answers a connection that is then closed.
func (r *roamer) refuse(l *link, state string, why error) {
	answer := moveAnswer{State: state}
	if why != nil {
		answer.Refused = oneLine(why)
	}
	writeMessage(l, answer) // whoever does not hear it asks again
	l.Close()
}

// again takes a connection that the source has made because it knows the one in use to be
// broken. It replaces one that has come since and is not used yet: the last one counts.
func (a *arrival) again(l *link) {
	a.r.mu.Lock()
	state, used, before := a.state, a.link, a.next
	if state == "" {
		a.next = l
	}
	a.r.mu.Unlock()
	if state != "" {
		a.r.refuse(l, state, nil)
		return
	}
	used.Close()
	if before != nil {
		before.Close()
	}
	select {
	case a.came <- struct{}{}:
	default: // nobody has looked since
	}
}

// take makes the next connection the one in use, and returns it; nil if there is none.
func (a *arrival) take() *link {
	a.r.mu.Lock()
	defer a.r.mu.Unlock()
	l := a.next
	if a.next = nil; l != nil {
		a.link = l
	}
	return l
}

// errHalf ends a guest that runs here and whose missing memory cannot come any more.
var errHalf = errors.New("the guest is lost: the other host, which has a part of its memory, is not heard")

// reconnect waits for another connection of the source, for as long as -give-up says, or
// until some time after an order to end.
func (a *arrival) reconnect(ctx context.Context, broken error) (migrate.Conn, error) {
	const last = lastQuestions * retry
	giveUp := a.r.o.giveUp
	until := "for as long as it takes"
	var late <-chan time.Time
	if giveUp > 0 {
		until = fmt.Sprintf("for %v", giveUp)
		late = time.After(giveUp)
	}
	a.r.p.phase("broken", "the guest runs here, and a part of its memory is on the other host: %s; "+
		"that is waited for %s, or %v after an order to end; then the guest is lost", oneLine(broken), until, last)
	ordered := a.r.ordered.Done()
	for {
		select {
		case <-a.came:
			l := a.take()
			if l == nil {
				continue
			}
			if writeMessage(l, moveAnswer{State: moveGoesOn}) == nil {
				a.r.p.phase("recovered", "over another connection")
				return l, nil
			}
			l.Close()
		case <-ordered:
			ordered = nil
			if giveUp == 0 || giveUp > last {
				late = time.After(last)
			}
		case <-late:
			return nil, errHalf
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// end records, for later questions of the source, whether the guest has come.
func (a *arrival) end(state string) {
	a.r.mu.Lock()
	defer a.r.mu.Unlock()
	a.state = state
	a.r.busy = state == movedHere
	if l := a.next; l != nil {
		a.next = nil
		a.r.group.Go(func() { a.r.refuse(l, state, nil) })
	}
}

// take takes the guest of an arrival. With an error it is not here, and never has run.
func (r *roamer) take(a *arrival) (err error) {
	refused := func(err error) error {
		a.end(movedNot)
		r.refuse(a.link, movedNot, err)
		return err
	}
	if err := r.fits(a.hello); err != nil {
		return refused(err)
	}
	var storage gokvmhost.Disk // nil, not a nil *movingDisk
	if r.disk != nil {
		storage = r.disk
	}
	s, err := newSolo(r.life, r.o, r.terminal, r.p, storage)
	if err != nil {
		return refused(err)
	}
	r.solo = s
	lazy, err := ram.NewLazy(s.guest.Blocks())
	defer func() {
		if lazy != nil {
			err = errors.Join(err, lazy.Close())
		}
		if err != nil {
			r.solo = nil
			err = errors.Join(err, s.close())
		}
	}()
	var reg vmstate.Registry
	if err == nil {
		err = errors.Join(lazy.Register(&reg), s.register(&reg))
	}
	if err == nil && a.hello.Postcopy {
		err = s.guest.laterMemory(lazy)
	}
	if _, judge, cpu := s.guest.cpu(); err == nil && cpu == nil && judge != nil {
		err = judge(a.hello.CPU)
	}
	if err != nil {
		return refused(err)
	}
	if err := writeMessage(a.link, moveAnswer{State: moveGoesOn}); err != nil {
		a.end(movedNot)
		return errors.Join(err, a.link.Close())
	}
	r.p.phase("arriving", "%v of memory", cli.Bytes(a.hello.Memory))
	d := migrate.NewDestination(migrate.DestinationConfig{
		VM: (*roamingVM)(r), State: &reg, Memory: lazy, Blocks: s.guest.Blocks(),
		Machine: machineType, Postcopy: a.hello.Postcopy, Reconnect: a.reconnect,
	})
	stop := r.report(func() string {
		p := d.Progress()
		return fmt.Sprintf("%s: %v left%s", p.Status, cli.Bytes(p.Remaining), again(p.Recovered))
	})
	leave := context.AfterFunc(r.ordered, func() {
		if d.Progress().Status == migrate.StatusActive {
			a.link.Close() // it stays where it is
		}
	})
	a.link.silence = func() time.Duration {
		if d.Progress().Status != migrate.StatusActive {
			return 0 // its guest runs here, and waits for its memory
		}
		return cmp.Or(r.o.hw.silence, silentTime)
	}
	err = d.Run(r.life, a.link)
	leave()
	stop()
	if err != nil && r.begun {
		a.end(moveUnknown)
		s.mute() // what the guest would do without its memory must not be seen
		return errors.Join(err, r.disk.give())
	}
	if err != nil {
		a.end(movedNot)
		return err
	}
	a.end(movedHere)
	s.announce()
	r.p.note(func(sum *summary) {
		sum.Move = &moveFigures{Postcopy: d.Stats.Postcopy, Recovered: d.Stats.Recovered, Memory: float64(d.Stats.Memory.Microseconds()) / 1000, Touched: d.Stats.Touched}
	})
	text := "the guest runs here"
	if d.Stats.Postcopy {
		text += fmt.Sprintf(", and has had all its memory %v later; it has waited for %d pages", d.Stats.Memory.Round(time.Millisecond), d.Stats.Touched)
	}
	r.p.phase("arrived", "%s", text)
	return nil
}

// fits returns an error that says why a guest cannot run here.
func (r *roamer) fits(h moveHello) error {
	o := r.o
	switch {
	case h.Memory != o.mem:
		return fmt.Errorf("the guest has -mem %v, here it is %v", cli.Bytes(h.Memory), cli.Bytes(o.mem))
	case h.VCPUs != o.vcpus:
		return fmt.Errorf("the guest has -vcpus %d, here it is %d", h.VCPUs, o.vcpus)
	case h.Card && o.tap == "":
		return errors.New("the guest has a network card, and there is no -tap here")
	case !h.Card && o.tap != "":
		return errors.New("the guest has no network card, and there is a -tap here")
	case h.Card && h.Header != headerFor(o):
		return errors.New("-offload is not the same on both hosts")
	}
	return r.disk.same(h.Disk, o.sharedDisk)
}
