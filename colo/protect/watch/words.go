package watch

import (
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// An action is a button. Confirm says what will happen.
type action struct {
	Verb    string `json:"verb"`
	Label   string `json:"label"`
	Confirm string `json:"confirm"`
	Danger  bool   `json:"danger"`
	Enabled bool   `json:"enabled"`
	Why     string `json:"why,omitempty"` // why the button is not enabled

	in []protect.State // the states that allow the order
}

// actions returns the buttons, and which of them the present state enables.
func actions(in protect.Info) []action {
	peer := other(in)
	all := []action{{
		Verb: "checkpoint", Label: "Checkpoint now",
		Confirm: "A checkpoint is made at once. The guest pauses for a moment, as it does in every checkpoint.",
		in:      []protect.State{protect.Protected},
	}}
	if in.State == protect.Paused {
		all = append(all, action{
			Verb: "resume", Label: "Resume protection",
			Confirm: fmt.Sprintf("%s is sought again. All of the guest's memory is copied to it while the guest runs, and then it is protected.", capital(peer)),
			in:      []protect.State{protect.Paused},
		})
	} else {
		all = append(all, action{
			Verb: "pause", Label: "Pause protection", Danger: true,
			Confirm: fmt.Sprintf("The guest runs on here without protection: if this host dies, what the guest has done is lost. The copy on %s is given up; Resume copies everything again.", peer),
			in:      []protect.State{protect.Alone, protect.Synchronising, protect.Protected},
		})
	}
	downtime := ""
	if d := in.Stats.Downtime; d > 0 {
		downtime = fmt.Sprintf(" The last time it stood still for %s.", short(d))
	}
	failover := action{
		Verb: "failover", Label: "Failover to this host", Danger: true,
		Confirm: fmt.Sprintf("This host claims the guest. The connection to %s ends, and the arbiter says who goes on; it prefers the host that has the guest now. "+
			"The guest stands still until then. What a dead host has not said to the world is not lost; its copy is that of the last checkpoint.", peer),
		in: []protect.State{protect.Protected, protect.Following, protect.Asking},
	}
	if in.State == protect.Protected {
		failover.Confirm = fmt.Sprintf("The guest goes on here without %s, if the arbiter grants it: the connection ends, and the guest is unprotected until the other host comes back. To move the guest, use Switchover.", peer)
	}
	return enable(append(all, action{
		Verb: "switchover", Label: "Switchover to the other host",
		Confirm: fmt.Sprintf("The guest moves to %s without loss: it stands still, its last checkpoint is made, and it runs on there; this host protects it from then on.%s If anything fails, it runs on where the arbiter says.", peer, downtime),
		in:      []protect.State{protect.Protected},
	}, failover, action{
		Verb: "fenced", Label: "The other host is dead", Danger: true,
		Confirm: fmt.Sprintf("You vouch that %s does not run the guest and never will from its present state: it is switched off, or cut from its disks and network. The guest goes on here at once, and nobody is asked. If it does run there, there are two of it.", peer),
		in:      []protect.State{protect.Protected, protect.Following, protect.Asking},
	}), in)
}

func enable(all []action, in protect.Info) []action {
	for i := range all {
		a := &all[i]
		for _, s := range a.in {
			a.Enabled = a.Enabled || s == in.State
		}
		switch {
		case a.Enabled && in.State == protect.Following && !whole(in):
			a.Enabled, a.Why = false, "the copy here is not whole yet"
		case !a.Enabled:
			a.Why = "not while " + in.State.String()
		}
	}
	return all
}

// whole reports whether a host that follows has a first checkpoint.
func whole(in protect.Info) bool {
	return in.Session != nil && in.Session.State != "new" && in.Session.State != "synchronising"
}

// other names the other host.
func other(in protect.Info) string {
	if in.Peer == "" {
		return "the other host"
	}
	return "host " + in.Peer
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// sentence returns one line of text that describes the state of the job, and its style class.
func sentence(in protect.Info) (s, tone string) {
	here, peer := "host "+in.Host, other(in)
	switch in.State {
	case protect.Created:
		return "This host is finding out whether the guest is to run here.", "idle"
	case protect.Waiting:
		return "The guest does not run here. This host waits for the one that has it.", "idle"
	case protect.Alone:
		return fmt.Sprintf("The guest runs here, on %s, unprotected. The other host is sought.", here), "warn"
	case protect.Synchronising:
		return fmt.Sprintf("The guest runs here, on %s, and is being copied to %s.", here, peer), "warn"
	case protect.Protected:
		return fmt.Sprintf("The guest runs here, on %s. %s has every checkpoint.", here, capital(peer)), "good"
	case protect.Paused:
		return fmt.Sprintf("The guest runs here, on %s, unprotected until protection is resumed.", here), "warn"
	case protect.Following:
		if !whole(in) {
			return fmt.Sprintf("The guest runs on %s and is being copied to this host.", peer), "warn"
		}
		return fmt.Sprintf("The guest runs on %s. This host has every checkpoint, and goes on if it must.", peer), "good"
	case protect.Asking:
		return "The other host is lost. The guest stands still here until it is settled who goes on.", "bad"
	case protect.TakingOver:
		return "The guest is this host's, and is about to run here.", "bad"
	case protect.SwitchingOver:
		return fmt.Sprintf("The guest stands still here and is about to run on %s.", peer), "warn"
	}
	if in.State.String() == "cancelled" {
		return fmt.Sprintf("The guest runs here, on %s, and is not protected any more.", here), "warn"
	}
	return "The protection has ended on this host.", "idle"
}

// short formats a duration with three digits and a unit.
func short(d time.Duration) string {
	v, unit := float64(d)/1e3, "µs"
	switch {
	case d >= time.Second:
		v, unit = d.Seconds(), "s"
	case d >= time.Millisecond:
		v, unit = float64(d)/1e6, "ms"
	}
	digits := 2
	switch {
	case v >= 100, unit == "µs":
		digits = 0
	case v >= 10:
		digits = 1
	}
	return fmt.Sprintf("%.*f\u00a0%s", digits, v, unit)
}
