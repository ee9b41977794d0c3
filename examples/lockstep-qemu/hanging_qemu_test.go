package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// brief is how long the QEMUs of these tests may owe an answer. The steps are tried at the same time.
const brief = time.Second

// hurried returns the options of a protection with a disk by a fake QEMU.
func (q *fakeQEMU) hurried() *protectOptions {
	return &protectOptions{qmp: q.addr, to: "tcp:127.0.0.1:1", nbd: "tcp:127.0.0.1:2", disks: []mirrored{{"d", "disk0"}}, pause: true,
		timeout: time.Hour, delay: time.Second, slow: brief, term: 10 * time.Second, stall: time.Hour, silence: time.Hour, holder: "here"}
}

func (q *fakeQEMU) heard() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]string(nil), q.steps...)
}

// Whoever watches a guest being protected must see which QEMU hangs, and where; and what does not answer
// keeps nobody from ending the program.
func TestAQEMUThatHangsAtAnyStepOfAProtectionIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	whole := newFakeQEMU(t, -1)
	var out, said printed
	if err := whole.hurried().protect(t.Context(), &printer{terminal: terminal{out: &out, err: &said}}); err != nil {
		t.Fatal(err)
	}
	steps := whole.heard()
	for _, must := range []string{"greeting", "qmp_capabilities", "blockdev-add", "blockdev-mirror", "stop", "qom-set", "migrate"} {
		if !strings.Contains(" "+strings.Join(steps, " ")+" ", " "+must+" ") {
			t.Errorf("no %s in %v", must, steps)
		}
	}
	var all sync.WaitGroup
	defer all.Wait()
	for k := range steps {
		q := newFakeQEMU(t, k)
		all.Go(func() { q.protectHangs(t) })
	}
}

// protectHangs protects a guest whose QEMU hangs at a step.
func (q *fakeQEMU) protectHangs(t *testing.T) {
	var out, said printed
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- q.hurried().protect(ctx, &printer{terminal: terminal{out: &out, err: &said}}) }()
	select {
	case <-q.hung:
	case err := <-done:
		t.Errorf("step %d: it has ended before: %v", q.hangsAt, err)
		return
	}
	at := q.stands()
	if at == "greeting" || at == "qmp_capabilities" { // these have a bound of their own
		err := <-done
		for _, w := range []string{q.addr, "after", at} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("step %d, %s: %v", q.hangsAt, at, err)
			}
		}
		return
	}
	words := "the QEMU at " + q.addr + " has not answered " + at + " for "
	for said.count(words) == 0 {
		select {
		case err := <-done:
			t.Errorf("step %d, %s: it was not named: %v", q.hangsAt, at, err)
			return
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("step %d, %s: %v", q.hangsAt, at, err)
	}
}

// A guardian asks its QEMU all the time how the guest is. One that hangs before the guardian knows what
// it has found ends it, and any later one does not.
func TestAGuardianWhoseQEMUHangsAtAnyStepNamesItAndEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	whole := newFakeQEMU(t, -1)
	var out, said printed
	done := whole.stay(ctx, &out, &said)
	eventually(t, "it is not protected", func() bool { return out.count("protected   the standby has the guest") > 0 })
	steps := len(whole.heard())
	found := slices.Index(whole.heard(), "query-status") // what is asked before that says what is found
	cancel()
	<-done
	var all sync.WaitGroup
	defer all.Wait()
	for k := range steps {
		q := newFakeQEMU(t, k)
		all.Go(func() { q.guardianHangs(t, k < found) })
	}
}

// stay is a guardian of a fake QEMU's guest.
func (q *fakeQEMU) stay(ctx context.Context, out, said *printed) <-chan error {
	o := q.hurried()
	o.stay = true
	done := make(chan error, 1)
	go func() {
		_, err := o.stayed(ctx, &printer{terminal: terminal{out: out, err: said}})
		done <- err
	}()
	return done
}

// guardianHangs has a guardian stay with a guest whose QEMU hangs at a step; ends says whether it then
// ends by itself.
func (q *fakeQEMU) guardianHangs(t *testing.T, ends bool) {
	var out, said printed
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := q.stay(ctx, &out, &said)
	<-q.hung
	at := q.stands()
	if ends {
		if err := <-done; err == nil || !strings.Contains(err.Error(), q.addr) || !strings.Contains(err.Error(), "after") {
			t.Errorf("step %d, %s: it has ended: %v", q.hangsAt, at, err)
		}
		return
	}
	for words := "the QEMU at " + q.addr + " has not answered " + at + " for "; said.count(words) == 0; {
		select {
		case err := <-done:
			t.Errorf("step %d, %s: it has ended: %v", q.hangsAt, at, err)
			return
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if <-done; said.count("the guardian ends: the QEMU at "+q.addr+" has not answered ") != 1 {
		t.Errorf("step %d, %s: it does not say at its end that the QEMU hangs", q.hangsAt, at)
	}
}

func TestACheckOfAQEMUThatHangsNamesIt(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	whole := newFakeQEMU(t, -1)
	<-start(t, "check", "-qmp", whole.addr).done
	var checks []func()
	for k, step := range whole.heard() {
		q := newFakeQEMU(t, k)
		p := start(t, "check", "-qmp", q.addr, "-timeout", (3 * brief).String())
		checks = append(checks, func() {
			p.ends(exitFailed)
			if said := p.errors(); !strings.Contains(said, "the QEMU at "+q.addr+": ") || !strings.Contains(said, step) || !strings.Contains(said, " after ") {
				t.Errorf("step %d, %s: %s", k, step, said)
			}
		})
	}
	for _, check := range checks {
		check()
	}
}

// What must be done although somebody has ended the program gets some time, and not all that it could take.
func TestWhoEndsAProgramWaitsNoLongerThanTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ interrupted, limit, want time.Duration }{
			{0, 10 * time.Second, 5 * time.Second},
			{2 * time.Second, 10 * time.Second, 7 * time.Second},
			{time.Hour, 10 * time.Second, 10 * time.Second},
			{6 * time.Second, 10 * time.Second, 10 * time.Second},
		} {
			ctx, stop := context.WithTimeout(t.Context(), c.interrupted)
			longer, cancel := graced(ctx, c.limit, 5*time.Second)
			began := time.Now()
			<-longer.Done()
			if took := time.Since(began); took != c.want {
				t.Errorf("interrupted after %v: %v, want %v", c.interrupted, took, c.want)
			}
			cancel()
			stop()
		}
	})
}

// A guardian tries for as long as it takes, and whoever comes back to the terminal looks for what else was said.
func TestAStandbyThatIsNotThereIsToldOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	q := newFakeQEMU(t, -1)
	q.alone = true
	o := q.hurried()
	o.stay, o.pause, o.disks, o.nbd = true, false, nil, ""
	var out, said printed
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := o.stayed(ctx, &printer{terminal: terminal{out: &out, err: &said}})
		done <- err
	}()
	eventually(t, "it does not try again", func() bool {
		n := 0
		for _, s := range q.heard() {
			if s == "migrate" {
				n++
			}
		}
		return n > 2
	})
	cancel()
	<-done
	for _, words := range []string{"mind: disk d ", "protecting ", "unprotected "} {
		if n := out.count(words); n != 1 {
			t.Errorf("%q was said %d times", words, n)
		}
	}
}

func TestAnAddressWithoutItsPortIsRefusedBeforeAnythingIsCopied(t *testing.T) {
	for _, c := range []struct{ wrong, args string }{
		{"-to tcp:there", "-to tcp:there"},
		{"-nbd tcp:there", "-to tcp:there:1 -nbd tcp:there -disk a=b"},
		{"-control tcp:there", "-to tcp:there:1 -stay -insecure -control tcp:there"},
	} {
		p := start(t, append([]string{"protect", "-qmp", "none"}, strings.Fields(c.args)...)...)
		p.ends(exitUsage)
		if said := p.errors(); !strings.Contains(said, c.wrong+": the port is missing") {
			t.Errorf("%s: %s", c.args, said)
		}
	}
}

// systemd ends a guardian that is silent for ten seconds.
func TestAQEMUThatHangsWithManyDisksKeepsItsGuardianAsLongAsOneWithNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		q := &fakeQEMU{hangsAt: 2, hung: make(chan struct{})} // once it has greeted and agreed
		served := make(chan struct{})
		go func() { defer close(served); q.serve(far) }()
		g := alone(nil)
		var err error
		if g.m, err = qmp.NewClientOOB(t.Context(), near); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			g.disks = append(g.disks, mirrored{fmt.Sprint("ide", i), fmt.Sprint("disk", i)})
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		if err := g.rescue(ctx); err == nil {
			t.Error("a QEMU that hangs has taken an order")
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it has kept the guardian for %v", took)
		}
		cancel()
		g.all.Wait()
		near.Close()
		<-served
	})
}
