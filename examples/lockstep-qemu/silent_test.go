package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// brief is how long the QEMUs of these tests may owe an answer.
const brief = 20 * time.Millisecond

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
	for k := range steps {
		var out, said printed
		q := newFakeQEMU(t, k)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.hurried().protect(ctx, &printer{terminal: terminal{out: &out, err: &said}}) }()
		select {
		case <-q.hung:
		case err := <-done:
			t.Fatalf("step %d, %s: it has ended before: %v", k, steps[k], err)
		}
		var err error
		if at := q.stands(); at == "greeting" || at == "qmp_capabilities" { // these have a bound of their own
			err = <-done
			for _, w := range []string{q.addr, "after", strings.TrimPrefix(at, "x-")} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("step %d, %s: %v", k, at, err)
				}
			}
		} else {
			words := "the QEMU at " + q.addr + " has not answered " + at + " for "
			eventually(t, "it is not said that "+words, func() bool { return said.count(words) > 0 })
			cancel()
			if err = <-done; err == nil {
				t.Errorf("step %d, %s: it was protected", k, at)
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("step %d, %s: %v", k, at, err)
			}
		}
		cancel()
	}
}

// A guardian asks its QEMU all the time how the guest is. One that hangs before the guardian knows what
// it has found ends it, and any later one does not.
func TestAGuardianWhoseQEMUHangsAtAnyStepNamesItAndEnds(t *testing.T) {
	stay := func(ctx context.Context, q *fakeQEMU, out, said *printed) <-chan error {
		o := q.hurried()
		o.stay = true
		done := make(chan error, 1)
		go func() {
			_, err := o.stayed(ctx, &printer{terminal: terminal{out: out, err: said}})
			done <- err
		}()
		return done
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	whole := newFakeQEMU(t, -1)
	var out, said printed
	done := stay(ctx, whole, &out, &said)
	eventually(t, "it is not protected", func() bool { return out.count("protected   the standby has the guest") > 0 })
	steps := len(whole.heard())
	found := slices.Index(whole.heard(), "query-status") // what is asked before that says what is found
	cancel()
	<-done
	for k := range steps {
		var out, said printed
		q := newFakeQEMU(t, k)
		ctx, cancel := context.WithCancel(t.Context())
		done := stay(ctx, q, &out, &said)
		<-q.hung
		words := "the QEMU at " + q.addr + " has not answered " + q.stands() + " for "
		var err error
		ended := false
		eventually(t, "it is not said that "+words, func() bool {
			select {
			case err = <-done:
				ended = true
			default:
			}
			return ended || k >= found && said.count(words) > 0
		})
		cancel()
		if !ended {
			if err = <-done; said.count("the guardian ends: the QEMU at "+q.addr+" has not answered ") != 1 {
				t.Errorf("step %d, %s: it does not say at its end that the QEMU hangs", k, q.stands())
			}
		} else if err == nil || !strings.Contains(err.Error(), q.addr) || !strings.Contains(err.Error(), "after") {
			t.Errorf("step %d, %s: it has ended: %v", k, q.stands(), err)
		}
	}
}

func TestACheckOfAQEMUThatHangsNamesIt(t *testing.T) {
	whole := newFakeQEMU(t, -1)
	<-start(t, "check", "-qmp", whole.addr).done
	for k, step := range whole.heard() {
		q := newFakeQEMU(t, k)
		p := start(t, "check", "-qmp", q.addr, "-timeout", "20ms")
		p.ends(exitFailed)
		if said := p.errors(); !strings.Contains(said, "the QEMU at "+q.addr+": ") || !strings.Contains(said, step) || !strings.Contains(said, " after ") {
			t.Errorf("step %d, %s: %s", k, step, said)
		}
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
