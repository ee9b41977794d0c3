package protect

import (
	"context"
	"fmt"
	"net"
)

// chAsk is the channel of a question: the answer is all that comes over it.
const chAsk = "ask"

// A Standing is the answer of a host to the question how its job for a guest stands
// (see Ask).
type Standing struct {
	Host string
	// State is the state of the job. One that waits for a primary, and is about to ask
	// its arbiter for the guest, to start it from its disks, says Created: if two
	// hosts are Created, only one of them may be given it. It says Waiting again when
	// the arbiter has refused.
	State      State
	Generation uint64 // the generation that the host holds or has followed
}

// Ask asks the other host how it stands with a guest; host is this one's name. It is
// for an arbiter that has nobody else to ask, and for an operator's tools. It uses
// the fields of p with which a job dials. The answer holds for the moment in which it
// was given and promises nothing. If the host answers, but has no such guest, or does
// not know yet of which generation its disks are, the error is a *RefusedError.
func Ask(ctx context.Context, p Peer, guest, host string) (Standing, error) {
	if err := p.check(); err != nil {
		return Standing{}, err
	}
	if err := p.checkDial(); err != nil {
		return Standing{}, err
	}
	conn, answer, err := dial(ctx, &Config{Peer: p}, hello{Channel: chAsk, Guest: guest, Host: host})
	if err != nil {
		return Standing{}, err
	}
	conn.Close()
	for s := Created; s <= Concluded; s++ {
		if s.String() == answer.State {
			return Standing{Host: answer.Host, State: s, Generation: answer.Generation}, nil
		}
	}
	return Standing{}, fmt.Errorf("%w: no state is called %q", ErrHello, answer.State)
}

// tell answers a question and ends its connection.
func (j *Job) tell(conn net.Conn, h hello) {
	j.mu.Lock()
	state := j.m.state
	if state == Waiting && j.claims {
		state = Created
	}
	answer := hello{Channel: h.Channel, Guest: h.Guest, Host: j.cfg.Host, Generation: j.generation, State: state.String(), TookOver: j.took}
	answer.Over = h.Token != "" && h.Token == j.departed && h.Host == j.departedFrom
	known := j.known
	left := j.leftBy(h)
	j.mu.Unlock()
	if left != nil {
		left.colo.Lost(fmt.Errorf("%s has lost the session, and asks whether this host goes on", h.Host))
	}
	if !known {
		turnAway(conn, "%s has not read its disks yet", j.cfg.Host)
		return
	}
	writeHello(conn, answer) // who does not hear it asks again
	conn.Close()
}
