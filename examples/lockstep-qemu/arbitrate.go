package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/examples/internal/arbiter"
	"github.com/gocolo/lockstep/failover"
)

// errForget means that the guardian or an operator has said that the copy must not be used.
var errForget = errors.New("not gone on with")

// openArbiter opens the arbiter that -arbiter names; nil: none. The caller calls end when it
// has asked the arbiter for the last time.
func openArbiter(s string, p *printer) (a failover.Arbiter, end func(), err error) {
	if s == "" {
		return nil, func() {}, nil
	}
	if a, end, err = arbiter.Open(s, "", func(line string) { p.warn("arbiter: %s", line) }); err != nil {
		err = fmt.Errorf("-arbiter %w", err)
	}
	return a, end, err
}

// checkArbiter returns an error unless -arbiter names one, or none.
func checkArbiter(s string) error {
	if s == "" {
		return nil
	}
	if err := arbiter.Check(s, ""); err != nil {
		return fmt.Errorf("-arbiter %w", err)
	}
	return nil
}

// rule returns the rule by which this standby decides whether it goes on.
func (o *standbyOptions) rule() standby.Takeover {
	return standby.Takeover{Arbiter: o.arbiter != "", Fence: o.fence != "", Always: o.takeover == "always"}
}

// withWords returns the reason for a step and, behind it, what the guardian has said, which may
// begin with the same words.
func withWords(why, words string) string {
	if strings.HasPrefix(words, why) {
		return words
	}
	return why + ": " + words
}

// arbitrate decides whether this side goes on. It waits for the guardian, the arbiter or an
// operator as the rule says, and keeps the copy meanwhile.
func (s *standbyRun) arbitrate(ctx context.Context, c colo.Claim) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var question chan claimed // of the arbiter; nil: not asked yet
	defer func() {
		cancel()
		if question != nil { // if the arbiter grants the guest too late, give it back
			if a := <-question; a.err == nil && a.grant.Generation != s.granted.Generation {
				s.release(a.grant, "not gone on with")
			}
		}
		if err != nil {
			s.giveBack("not gone on with")
		}
	}()
	if !c.Ordered {
		s.heard.update(func() { s.heard.running = false })
	}
	var arbiter, fence standby.Answer
	said, asked, freed := "", false, false
	defer s.decision.Store(nil)
	for {
		e, words, changed := s.heard.evidence()
		e.Closed, e.Promoted = s.conn != nil && s.conn.gone(), e.Promoted || c.Ordered
		e.Arbiter, e.Fence = arbiter, fence
		step, why := s.rule().Next(e)
		if words != "" && e.Word != standby.NoWord {
			why = withWords(why, words)
		}
		if waits := s.heard.stays(); waits != "" && (step == standby.AskStop || step == standby.Wait) {
			why += ": " + waits
		}
		here := e.Guardian == standby.GuardianHere
		ends := step == standby.Wait && !here && !(e.Promoted && e.Running) && (e.Fence == standby.No || s.takeover == "always")
		if text := step.String() + why; text != said {
			said = text
			s.decided(step, why, c, here || ends)
		}
		switch step {
		case standby.GoOn:
			return nil
		case standby.Forget:
			return fmt.Errorf("%w: %w: %s", colo.ErrRefused, errForget, why)
		case standby.AskStop:
			if !asked {
				asked = true
				s.heard.ask()
			}
		case standby.AskArbiter:
			if e.Assured && !freed {
				freed = true
				s.freeHeld(ctx)
			}
			if question == nil {
				question = make(chan claimed, 1)
				go s.claim(ctx, question) // joined by the answer
			}
		case standby.RunFence:
			if err := s.runFence(ctx, c); err != nil {
				s.p.warn("%v", err)
				fence = standby.No
			} else {
				fence = standby.Yes
			}
			continue
		case standby.Wait:
			if ends {
				return fmt.Errorf("%w: %s", colo.ErrRefused, why)
			}
		}
		select {
		case <-changed:
		case a := <-question:
			question = nil
			switch {
			case a.err == nil:
				arbiter, s.granted = standby.Yes, a.grant
			case errors.Is(a.err, failover.ErrRefused):
				arbiter = standby.No
				s.p.warn("arbiter: %v", a.err)
			case ctx.Err() != nil:
				return ctx.Err()
			default:
				s.p.warn("arbiter: %v", a.err)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond): // whether the connection is closed by now
		}
	}
}

// claimed is the answer of the arbiter to a claim.
type claimed struct {
	grant failover.Grant
	err   error
}

// claim asks the arbiter once, when the promise to the guardian is over.
func (s *standbyRun) claim(ctx context.Context, answer chan<- claimed) {
	after, not := s.heard.claims()
	asking, answered := context.WithCancel(ctx)
	var said sync.WaitGroup
	said.Go(func() { s.sayHeld(asking) }) // beside it: the takeover does not wait for a second question
	g, err := s.acquire(ctx, after, not)
	answered()
	said.Wait()
	if err != nil {
		s.heard.unclaimed()
	}
	answer <- claimed{g, err}
}

// sayHeld says who has the guest for good, and what an operator can do about it.
func (s *standbyRun) sayHeld(ctx context.Context) {
	if r := s.heldForGood(ctx); r.Held() {
		s.p.say("            %s has the guest there without a deadline (%s); once it surely does not run: lockstep-qemu promote -standby %s -stopped", r.Holder, r.Note, s.state)
	}
}

func (s *standbyRun) acquire(ctx context.Context, after uint64, not time.Time) (failover.Grant, error) {
	if wait := time.Until(not); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return failover.Grant{}, ctx.Err()
		}
	}
	if after == 0 { // no guardian has named its generation
		after = s.began.Generation
	}
	return s.arbiterOf.Acquire(ctx, failover.Claim{Holder: s.holder, Token: s.token, After: after, Note: "a standby"})
}

// heldForGood returns the arbiter's record if it has given the guest of which the copy is here to another
// host, until that releases it: its guardian was ended, say, and the QEMU has died since. Otherwise it
// returns the zero Record.
func (s *standbyRun) heldForGood(ctx context.Context) failover.Record {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := s.arbiterOf.Record(ctx)
	if err != nil || !r.Held() || r.Term > 0 || r.Token == s.token || r.Generation != s.copyOf() {
		return failover.Record{} // where nobody answers, or the copy is old, the claim says so
	}
	return r
}

// freeHeld releases a guest for the host that has it for good, and on which it does not run, as an operator says:
// nobody is left there to do that.
func (s *standbyRun) freeHeld(ctx context.Context) {
	if r := s.heldForGood(ctx); r.Held() {
		s.release(failover.Grant{Generation: r.Generation, Token: r.Token}, "promoted: it does not run there, an operator says")
	}
}

// copyOf returns the generation of the guest of which the copy is here.
func (s *standbyRun) copyOf() uint64 {
	s.heard.mu.Lock()
	defer s.heard.mu.Unlock()
	if s.heard.generation > 0 {
		return s.heard.generation
	}
	return s.began.Generation // no guardian has named its generation
}

// giveBack releases what the arbiter has granted, if it has.
func (s *standbyRun) giveBack(note string) {
	if s.arbiterOf != nil && s.granted.Generation > 0 {
		s.release(s.granted, note)
		s.granted = failover.Grant{}
	}
}

// release gives a grant back.
func (s *standbyRun) release(g failover.Grant, note string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.arbiterOf.Release(ctx, g, note); err != nil && !errors.Is(err, failover.ErrRefused) {
		s.p.warn("arbiter: %v", err)
	}
}

// decided prints what is done next and, unless that is settled without one, what an operator can do about it.
func (s *standbyRun) decided(step standby.Step, why string, c colo.Claim, settled bool) {
	words := step.String() + ": " + why
	s.decision.Store(&words)
	s.p.object(map[string]any{"decision": map[string]any{"step": step.String(), "why": why, "epoch": c.Epoch}})
	switch step {
	case standby.Wait:
		s.p.say("undecided   %s", why)
		if settled {
			return
		}
		stopped := ""
		if e, _, _ := s.heard.evidence(); e.Promoted && e.Running {
			stopped = " -stopped"
		}
		s.p.say("            checkpoint %d is kept; once the guest surely does not run elsewhere: lockstep-qemu promote -standby %s%s", c.Epoch, s.state, stopped)
	case standby.AskStop:
		s.p.say("asking      the guardian to stop the primary's guest: %s", why)
	case standby.AskArbiter:
		s.p.say("asking      %s, %s", s.arbiter, why)
	}
}

// runFence runs -fence. Meanwhile the standby hears neither its guardian nor an operator.
func (s *standbyRun) runFence(ctx context.Context, c colo.Claim) error {
	s.p.say("fencing     %s", s.fence)
	cause := "an operator's order"
	if c.Cause != nil {
		cause = c.Cause.Error()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fenceLimit, fmt.Errorf("it was given %v", fenceLimit))
	defer cancel()
	return s.command.run(ctx, s.fence, "LOCKSTEP_EPOCH="+strconv.FormatUint(c.Epoch, 10), "LOCKSTEP_CAUSE="+cause)
}

// tokenOf returns the token of this host's claims for the guest whose monitor is at addr. A
// monitor has one client, so only one process uses the token at a time. It stays the same
// when that process is started again, and changes with a reboot, which ends all guests.
func tokenOf(addr string) string {
	network, address := qmp.Split(addr)
	if abs, err := filepath.Abs(address); network == "unix" && err == nil {
		address = abs
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	sum := sha256.Sum256([]byte(strings.Join([]string{hostName(), strings.TrimSpace(string(boot)), network, address}, "\n")))
	return hex.EncodeToString(sum[:16])
}
