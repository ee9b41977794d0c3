package standby

import "fmt"

// A Takeover says whether the host of a [Copy] may go on with it when the session
// with the primary has ended. It is pure: the caller passes what is known, gets the next
// step, carries that out and asks again. The zero Takeover never decides alone: it goes
// on only when the guardian or an operator says so.
//
// The rules, of which the first that fits counts:
//
//   - The guardian says that the guest has ended in good order, or that it runs on
//     alone: the copy is not used.
//   - The arbiter refuses: the copy is not used.
//   - The guardian says that the guest's process is dead, or that it has stopped
//     the guest for good: the host goes on with the copy, once the arbiter, if there
//     is one, has granted it.
//   - An operator has promoted this side: a guardian that answers is asked to
//     stop its guest first. One that does not answer any more, and may hang beside a guest
//     that runs, stops nothing: the fence is run then, and without one the host waits until
//     the operator says that the guest does not run.
//   - A guardian answers, which knows the guest: the host waits for its decision.
//   - No guardian answers: the arbiter decides, or the fence, or, with Always, the end
//     of the primary's connection.
//   - Otherwise the host waits until one of them decides: [Wait].
type Takeover struct {
	// Arbiter: there is an arbiter, and the host does not go on with the copy unless it
	// has granted that.
	Arbiter bool
	// Fence: there is a command that makes sure that the primary does not run. It is
	// run, after the arbiter was asked, if neither guardian nor operator has decided, or if an
	// operator has where the guest may run beside a guardian that does not answer.
	Fence bool
	// Always treats a connection that the primary's side has closed as the death of its
	// guest. With an arbiter it has no effect.
	Always bool
}

// A Presence says whether the guardian of the primary's guest answers.
type Presence uint8

// The presences.
const (
	NoGuardian   Presence = iota // there is none, or it has not been heard of yet
	GuardianHere                 // the guardian answers
	GuardianGone                 // it did, and does not any more
)

// A Word is the last thing that a guardian has said about the guest whose copy is here.
type Word uint8

// The words.
const (
	NoWord  Word = iota // nothing that decides
	Planned             // it has ended in good order: shut down, quit, a signal
	Dead                // its process has ended without being told to
	Alone               // it runs on without this copy
	Stopped             // it was stopped, for this copy to go on
)

var wordNames = [...]string{"none", "planned", "dead", "alone", "stopped"}

// String returns the word as the control channel has it.
func (w Word) String() string {
	if int(w) < len(wordNames) {
		return wordNames[w]
	}
	return fmt.Sprintf("Word(%d)", uint8(w))
}

// An Answer is the answer to a question, to the arbiter or the fence.
type Answer uint8

// The answers.
const (
	NotAsked Answer = iota // or nobody could be asked: it is asked again
	Yes
	No
)

// Evidence has the facts from which Next decides.
type Evidence struct {
	Closed   bool     // the primary's side has closed the connection, or reset it
	Guardian Presence // changes as the guardian comes and goes
	Word     Word     // the guardian's last, for the generation of the copy
	Promoted bool     // an operator wants this side to go on
	Running  bool     // the primary was not known to be lost when this side was promoted
	Assured  bool     // the operator says that the primary's guest does not run
	Arbiter  Answer
	Fence    Answer // what the fencing command answered
}

// A Step tells a host how to go on with a guest whose session has ended.
type Step uint8

// The steps.
const (
	Wait       Step = iota // for any of the evidence to change; the copy is kept
	AskStop                // ask the guardian to stop its guest
	AskArbiter             // ask the arbiter, which may take as long as a term
	RunFence               // run the fencing command
	GoOn                   // go on with the copy
	Forget                 // never go on with the copy
)

var stepNames = [...]string{"wait", "ask the guardian to stop the guest", "ask the arbiter", "fence", "go on", "forget"}

// String returns the step in words.
func (s Step) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return fmt.Sprintf("Step(%d)", uint8(s))
}

// Next returns the next step, and the reason in words for an operator.
func (t Takeover) Next(e Evidence) (Step, string) {
	switch {
	case e.Word == Planned:
		return Forget, "the guest has ended as it was meant to"
	case e.Word == Alone:
		return Forget, "the primary's guest runs on alone"
	case e.Arbiter == No:
		return Forget, "the arbiter has given the guest to the other side"
	}
	certain := e.Word == Dead || e.Word == Stopped
	unstopped := e.Promoted && e.Running && !e.Assured && e.Guardian == GuardianGone && !certain
	switch {
	case certain:
	case e.Promoted && e.Guardian == GuardianHere:
		return AskStop, "an operator has promoted this side, and the guardian answers"
	case unstopped && !t.Fence:
		return Wait, "an operator has promoted this side, but the guardian does not answer, so nobody has stopped the primary's guest"
	case e.Promoted:
	case e.Guardian == GuardianHere:
		return Wait, "the guardian answers, its word is waited for"
	case t.Arbiter || t.Fence || t.Always && e.Closed:
	case e.Closed:
		return Wait, "the primary closed the connection, and nobody says whether its guest still runs"
	default:
		return Wait, "the primary is silent, and nobody says whether its guest still runs"
	}
	if t.Arbiter && e.Arbiter != Yes {
		return AskArbiter, "the arbiter decides"
	}
	if t.Fence && !certain && (!e.Promoted || unstopped) && e.Fence != Yes {
		if e.Fence == No {
			return Wait, "the fence has failed"
		}
		return RunFence, "the primary may be alive"
	}
	switch {
	case e.Word == Dead:
		return GoOn, "the primary's process is dead"
	case e.Word == Stopped:
		return GoOn, "the primary's guest was stopped"
	case e.Promoted:
		return GoOn, "an operator has promoted this side"
	case t.Fence:
		return GoOn, "the primary is fenced"
	case t.Arbiter:
		return GoOn, "the arbiter has granted it"
	}
	return GoOn, "the primary closed the connection"
}
