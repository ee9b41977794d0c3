package protect

import (
	"fmt"
	"slices"
	"strings"
)

// A State is how far a job has come. The package comment has the diagram.
type State uint8

// The states.
const (
	Created       State = iota // Run has not decided yet who this host is
	Waiting                    // the guest does not run here; a primary is waited for
	Alone                      // the guest runs here, unprotected; a secondary is sought
	Synchronising              // the guest runs here and is copied to a secondary
	Protected                  // the guest runs here, a secondary has every checkpoint
	Paused                     // the guest runs here, unprotected until Resume
	Cancelled                  // the guest runs here, and is not protected any more
	Following                  // this host is the secondary
	Asking                     // the other side is lost; the guest stands still and the arbiter is asked
	TakingOver                 // it is settled that this host goes on, and the guest is about to run here
	SwitchingOver              // the last checkpoint is made, and the secondary is to go on
	Concluded                  // Run has returned, or is about to
)

var stateNames = [...]string{
	"created", "waiting", "alone", "synchronising", "protected", "paused", "cancelled", "following", "asking", "taking-over", "switching-over", "concluded",
}

// String returns the state in a word.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText returns the state in a word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// JobStatus returns the state as a word of QEMU's JobStatus (qapi/job.json): a
// job that runs has work to do, one that is ready could be completed, one that is
// pending is on its way to the other side.
func (s State) JobStatus() string {
	switch s {
	case Created:
		return "created"
	case Paused:
		return "paused"
	case Protected, Following:
		return "ready"
	case Asking, TakingOver, SwitchingOver:
		return "pending"
	case Cancelled, Concluded:
		return "concluded"
	}
	return "running"
}

// runs reports whether the guest runs here as the one that the world sees.
func (s State) runs() bool {
	return s == Alone || s == Synchronising || s == Protected || s == Paused || s == Cancelled
}

// runsIn is what runs is for a state that the other host has named.
func runsIn(state string) bool {
	for s := range Concluded {
		if s.runs() && s.String() == state {
			return true
		}
	}
	return false
}

// paired reports whether there is a session in that state.
func (s State) paired() bool {
	switch s {
	case Synchronising, Protected, SwitchingOver, Following, Asking, TakingOver:
		return true
	}
	return false
}

// An input can change the state of a machine: something has happened, or an operator has
// called a verb.
type input uint8

const (
	granted   input = iota // the arbiter says yes
	refused                // the arbiter says no, or the other side has said that it goes on
	agreed                 // a secondary has agreed to follow
	joined                 // a primary leads
	inStep                 // the secondary has the first checkpoint
	unharmed               // the synchronisation failed, and the guest runs on
	unborn                 // the session ended before the copy here was whole
	broke                  // the session ended, and either side may go on
	tookOver               // the guest runs here
	torn                   // a load failed half way
	deposed                // the arbiter says that another generation has begun
	left                   // the session was ended on purpose, and the guest runs on here
	handed                 // the other side runs the guest
	migrated               // and this host is done with it
	calledOff              // a switchover was given up before the grant was given back for it
	entrusted              // the primary has handed the guest to this host, and there is no arbiter to be asked
	gaveUp                 // this host was entrusted with the guest, and cannot have it
	stopped                // the context of Run has ended
	failed                 // something of this host's own does not work

	doPause
	doResume
	doComplete
	doCheckpoint
	doFailover
	doFenced
	doSwitchover
	doMigrate
	doCancel
	doSave
	doSetDelay
	doGrow
	inputs // how many there are
)

var inputNames = [...]string{
	"granted", "refused", "agreed", "joined", "in-step", "unharmed", "unborn", "broke", "took-over", "torn", "deposed", "left",
	"handed-over", "migrated", "called-off", "entrusted", "gave-up", "stopped", "failed",
	"pause", "resume", "complete", "checkpoint", "failover", "fenced", "switchover", "migrate", "cancel", "save", "set-delay", "grow",
}

func (i input) String() string { return inputNames[i] }

// transitions is the whole machine. An input that a state does not have is not
// allowed there. A verb that needs I/O leads to the state in which that is done;
// what comes of it is another input.
var transitions = map[State]map[input]State{
	Created: {granted: Alone, refused: Waiting},
	Waiting: {joined: Following, granted: Alone},
	Alone: {
		agreed: Synchronising, deposed: Waiting,
		doPause: Paused, doCancel: Cancelled, doComplete: Concluded, doSave: Alone, doGrow: Alone,
	},
	Paused:    {deposed: Waiting, doResume: Alone, doCancel: Cancelled, doComplete: Concluded, doSave: Paused, doGrow: Paused},
	Cancelled: {deposed: Waiting, doComplete: Concluded, doSave: Cancelled, doGrow: Cancelled},
	Synchronising: {
		inStep: Protected, unharmed: Alone, broke: Asking, deposed: Waiting, left: Alone,
		doPause: Synchronising, doCancel: Synchronising, doComplete: Synchronising, doSave: Synchronising,
	},
	Protected: {
		broke: Asking, deposed: Waiting, left: Alone,
		doPause: Protected, doCancel: Protected, doComplete: Protected, doSave: Protected, doGrow: Protected,
		doCheckpoint: Protected, doFailover: Asking, doFenced: TakingOver, doSwitchover: SwitchingOver, doMigrate: SwitchingOver,
	},
	SwitchingOver: {handed: Waiting, migrated: Concluded, calledOff: Protected, broke: Asking, left: Alone, deposed: Waiting},
	Following: {
		unborn: Waiting, refused: Waiting, broke: Asking, entrusted: TakingOver, torn: Concluded,
		doFailover: Asking, doFenced: TakingOver,
	},
	Asking: {
		granted: TakingOver, refused: Waiting, torn: Concluded,
		doFailover: Asking, doFenced: TakingOver,
	},
	TakingOver: {granted: TakingOver, gaveUp: Waiting, tookOver: Alone, torn: Concluded},
	Concluded:  {},
}

// always are the inputs that end every state that has not ended.
var always = []input{stopped, failed}

// A machine is the state of a job: pure, it does no I/O and has no clock.
type machine struct {
	state  State
	reason string // why it is in this state, in words; "" if it says nothing
}

// allows reports whether an input is possible now.
func (m *machine) allows(in input) bool {
	_, ok := m.next(in)
	return ok
}

func (m *machine) next(in input) (State, bool) {
	if m.state != Concluded && slices.Contains(always, in) {
		return Concluded, true
	}
	if m.state != Concluded && in == doSetDelay {
		return m.state, true
	}
	s, ok := transitions[m.state][in]
	return s, ok
}

// do takes an input. An error is a *StateError, and nothing has changed.
func (m *machine) do(in input, reason string) error {
	s, ok := m.next(in)
	if !ok {
		return &StateError{Verb: in.String(), State: m.state}
	}
	m.state, m.reason = s, reason
	return nil
}

// A StateError says that a verb is not allowed in the present state, and in which it is. See
// the package comment for the table.
type StateError struct {
	Verb  string
	State State
}

func (e *StateError) Error() string {
	text := fmt.Sprintf("protect: %s is not possible while %s", e.Verb, e.State)
	states := allowing(e.Verb)
	if e.State == Concluded || len(states) == 0 || slices.Contains(states, e.State.String()) {
		return text
	}
	last := len(states) - 1
	if last > 0 {
		states = append(states[:last-1], states[last-1]+" or "+states[last])
	}
	return text + ", only while " + strings.Join(states, ", ")
}

// allowing returns the states in which a verb is allowed, in words.
func allowing(verb string) (states []string) {
	in := slices.Index(inputNames[:], verb)
	if in < 0 {
		return nil
	}
	for s := range Concluded {
		if (&machine{state: s}).allows(input(in)) {
			states = append(states, s.String())
		}
	}
	return states
}
