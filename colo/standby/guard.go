package standby

import (
	"fmt"
	"time"
)

// A Guard decides what is to be done for a stock QEMU's guest that is protected by
// a standby: QEMU itself waits without a bound, and keeps its guest standing after
// an error until somebody gives x-colo-lost-heartbeat. It is pure: it does no I/O,
// has no clock and no goroutine. What happens goes in ([Guard.Step]), what to do
// comes out. It belongs to one goroutine.
//
//	            Tick (the standby is there)     InStep
//	Unprotected ──────────────────────► Protecting ──► Protected
//	  ▲   ▲                                │ Failed        │ COLO_EXIT, the guest stands
//	  │   └────────────────────────────────┘               │ for Stall, the standby or a
//	  │ Granted                                            ▼ checkpoint is late by Silence
//	  └──────────────────────────────────────────────── Asking
//	                                                       │ Refused
//	any state: the standby runs the guest                  ▼
//	Protected: an operator has promoted it ──────────► StoodDown
//	any state: SHUTDOWN, or the process is gone ─────► Ended
//
// The guest is told to go on alone only with the arbiter's yes. It is stopped where the arbiter
// says no, and for as long as this host may not run it (HoldOver), so that of two hosts that have
// lost each other one has a guest that runs. A standby that is promoted while the arbiter is
// asked hears the arbiter's answer.
//
// Neither the guest nor the standby is blamed for a time in which the process of the
// Guard itself was stopped: see [Guard.Step].
type Guard struct {
	cfg    GuardConfig
	state  GuardState
	moved  time.Time // the guest last ran, or its checkpoint got on
	seen   time.Time // the standby last answered
	got    time.Time // it last received more of a checkpoint, or none was due
	last   time.Time // of the last Step
	next   time.Time // not to be protected before
	wait   time.Duration
	there  bool // the standby answers
	held   bool // this host may run the guest
	paused bool // an operator has stopped the guest
	ours   bool // HoldOver has stopped it, and it has not been seen to run since
}

// GuardConfig has the times for which a Guard waits. The zero value is right for most.
type GuardConfig struct {
	// Stall is for how long a protected guest may stand without its checkpoint
	// getting on. 0: DefaultStall.
	Stall time.Duration
	// Silence is how long a standby that has answered once may be silent, and how long one
	// that answers may lack a checkpoint that is due. 0: DefaultSilence.
	Silence time.Duration
	// Retry is for how long a guest whose protection has failed is left alone
	// before the next try; it doubles up to 16 times that. 0: DefaultRetry.
	Retry time.Duration
}

// The defaults of GuardConfig.
const (
	DefaultStall   = 2 * time.Second
	DefaultSilence = 5 * time.Second
	DefaultRetry   = time.Second
)

// A GuardState is the state of a guest's protection.
type GuardState uint8

// The states.
const (
	Unprotected GuardState = iota // the guest runs alone
	Protecting                    // it is copied to the standby
	Protected                     // the standby has its checkpoints
	Asking                        // protection is lost and the arbiter is asked
	StoodDown                     // the standby has the guest; the one here is stopped
	Ended                         // the guest's process has ended
)

var guardStates = [...]string{"unprotected", "protecting", "protected", "asking", "stood-down", "ended"}

// String returns the state in a word.
func (s GuardState) String() string {
	if int(s) < len(guardStates) {
		return guardStates[s]
	}
	return fmt.Sprintf("GuardState(%d)", uint8(s))
}

// A GuardInput is something that has happened.
type GuardInput uint8

// The inputs.
const (
	Tick         GuardInput = iota // nothing, but that time has passed
	Runs                           // the guest runs: query-status, or RESUME
	Stands                         // it does not, and the checkpoint may be why
	Advances                       // the standby has received more of a checkpoint
	OperatorStop                   // it does not, since somebody gave stop
	Exited                         // COLO_EXIT
	PlannedEnd                     // SHUTDOWN with any reason but host-error
	Died                           // the process has ended without a SHUTDOWN
	StandbyThere                   // the standby answers, and has no guest of its own
	StandbyLost                    // the control channel has ended
	StandbyRuns                    // the standby has gone on with the guest
	StandbyWants                   // an operator has promoted the standby
	InStep                         // the guest is protected
	Failed                         // it could not be protected
	Granted                        // the arbiter says yes
	Refused                        // the arbiter says no, asked or not
	HoldOver                       // the time has run out in which this host may run the guest
	HoldBack                       // it may again
	Overdue                        // the guest runs, and the standby has received nothing of the checkpoint that is due
)

var guardInputs = [...]string{
	"tick", "runs", "stands", "advances", "operator-stop", "exited", "planned-end", "died", "standby-there", "standby-lost",
	"standby-runs", "standby-wants", "in-step", "failed", "granted", "refused", "hold-over", "hold-back", "overdue",
}

// String returns the input in a word.
func (i GuardInput) String() string {
	if int(i) < len(guardInputs) {
		return guardInputs[i]
	}
	return fmt.Sprintf("GuardInput(%d)", uint8(i))
}

// A GuardAction is something to be done, in the order in which Step returns them.
type GuardAction uint8

// The actions.
const (
	Protect       GuardAction = iota // copy the guest to the standby; InStep or Failed follows
	AskGrant                         // ask for the guest's next generation; Granted or Refused follows
	LostHeartbeat                    // x-colo-lost-heartbeat, or yank where that is not answered
	StopGuest                        // stop
	ContinueGuest                    // cont
	HoldStill                        // stop, and again if a checkpoint has it run, until an operator gives cont
	TellAlone                        // the standby's copy is old from now on
	TellStopped                      // the guest here was stopped for the standby's
	TellPlanned                      // the guest has ended as it was meant to
	TellDead                         // its process is dead
)

var guardActions = [...]string{
	"protect", "ask-grant", "lost-heartbeat", "stop", "cont", "hold-still", "tell-alone", "tell-stopped", "tell-planned", "tell-dead",
}

// String returns the action in a word.
func (a GuardAction) String() string {
	if int(a) < len(guardActions) {
		return guardActions[a]
	}
	return fmt.Sprintf("GuardAction(%d)", uint8(a))
}

// NewGuard returns the Guard of a guest that runs, or stands, in a state:
// Unprotected, or Protected where its QEMU is in COLO already.
func NewGuard(cfg GuardConfig, state GuardState, now time.Time) *Guard {
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Silence == 0 {
		cfg.Silence = DefaultSilence
	}
	if cfg.Retry == 0 {
		cfg.Retry = DefaultRetry
	}
	return &Guard{cfg: cfg, state: state, moved: now, seen: now, last: now, got: now, wait: cfg.Retry, held: true}
}

// State returns the present state.
func (g *Guard) State() GuardState { return g.state }

// Step takes an input at the time now, which does not go back. It returns the actions to
// carry out and, if the state has changed, the reason in words for an operator.
//
// It is to be called, with Tick if nothing else has happened, several times in the shorter of
// Stall and Silence. A longer time than a quarter of that between two calls counts as this
// quarter: the caller was stopped, or its machine was, and what has happened meanwhile
// is still to be told.
func (g *Guard) Step(now time.Time, in GuardInput) (do []GuardAction, why string) {
	if gap := now.Sub(g.last) - min(g.cfg.Stall, g.cfg.Silence)/4; gap > 0 {
		g.moved, g.seen, g.got = g.moved.Add(gap), g.seen.Add(gap), g.got.Add(gap)
	}
	g.last = now
	if g.state == StoodDown || g.state == Ended {
		if in == Runs && g.state == StoodDown { // somebody, or a checkpoint
			return []GuardAction{StopGuest}, ""
		}
		return nil, ""
	}
	switch in {
	case Runs:
		if g.paused {
			g.got = now // the next checkpoint is due from now on
		}
		g.moved, g.paused = now, false
		if !g.held {
			return []GuardAction{StopGuest}, ""
		}
		g.ours = false
	case Advances:
		g.moved, g.seen, g.got = now, now, now
	case OperatorStop:
		if g.held && g.ours {
			break // this is the stop of HoldOver, seen late: the guest has not gone on since
		}
		g.moved = now
		if !g.paused && g.held {
			g.paused = true
			if g.state == Protected {
				return []GuardAction{HoldStill}, "an operator has stopped the guest"
			}
		}
	case PlannedEnd:
		g.state = Ended
		return []GuardAction{TellPlanned}, "the guest has ended as it was meant to"
	case Died:
		g.state = Ended
		return []GuardAction{TellDead}, "the guest's process is dead"
	case StandbyThere:
		g.there, g.seen = true, now
	case StandbyLost:
		g.there = false
	case StandbyRuns:
		g.state = StoodDown
		return []GuardAction{StopGuest}, "the standby has gone on with the guest"
	case Refused:
		g.state = StoodDown
		// A standby that was granted the guest while the channel was down, and
		// that hears of this host again, waits for a word.
		return []GuardAction{StopGuest, TellStopped}, "the arbiter has given the guest to the standby"
	case StandbyWants:
		switch g.state {
		case Protected:
		case Asking:
			// A question that is under way cannot be taken back: were the guest
			// stopped and the answer yes, the standby would be refused, and the
			// guest would run nowhere. The answer is told, whichever it is.
			return nil, "an operator has promoted the standby, which hears the answer of the arbiter that is asked already"
		default:
			return []GuardAction{TellAlone}, "" // what it has is old
		}
		g.state = StoodDown
		return []GuardAction{StopGuest, TellStopped}, "an operator has promoted the standby"
	case HoldOver:
		g.held, g.ours = false, !g.paused
		return []GuardAction{StopGuest}, "the arbiter cannot be asked any more, and may give the guest to the standby"
	case HoldBack:
		if g.held = true; !g.paused {
			g.moved, g.got = now, now
			return []GuardAction{ContinueGuest}, "the arbiter can be asked again"
		}
	}
	switch g.state {
	case Unprotected:
		if g.there && g.held && !g.paused && !now.Before(g.next) {
			g.state, g.moved = Protecting, now
			return []GuardAction{Protect}, "the standby is there"
		}
	case Protecting:
		switch in {
		case InStep:
			g.state, g.wait, g.moved, g.seen, g.got = Protected, g.cfg.Retry, now, now, now
			return nil, "the standby has the guest"
		case Failed:
			g.alone(now)
			return []GuardAction{TellAlone}, "the guest could not be protected"
		}
	case Protected:
		switch {
		case in == Exited:
			why = "the session with the standby has ended"
		case !g.paused && now.Sub(g.moved) > g.cfg.Stall:
			why = fmt.Sprintf("the guest has stood for %v without its checkpoint getting on", now.Sub(g.moved).Round(time.Millisecond))
		case now.Sub(g.seen) > g.cfg.Silence:
			why = fmt.Sprintf("the standby has not answered for %v", now.Sub(g.seen).Round(time.Millisecond))
		case in == Overdue && g.held && !g.paused && now.Sub(g.got) > g.cfg.Silence:
			why = fmt.Sprintf("a checkpoint is due, and the standby has received nothing for %v", now.Sub(g.got).Round(time.Millisecond))
		default:
			return nil, ""
		}
		g.state = Asking
		return []GuardAction{AskGrant}, why
	case Asking:
		if in == Granted {
			g.held = true
			g.alone(now)
			do = []GuardAction{LostHeartbeat, TellAlone}
			if g.paused {
				do = append(do, StopGuest)
			}
			return do, "the guest runs on unprotected"
		}
	}
	return nil, ""
}

// alone changes the state to Unprotected, and sets the time of the next try, which is twice
// as long after each failure.
func (g *Guard) alone(now time.Time) {
	g.state, g.moved = Unprotected, now
	g.next = now.Add(g.wait)
	g.wait = min(2*g.wait, 16*g.cfg.Retry)
}
