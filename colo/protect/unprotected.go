package protect

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
)

// say publishes and logs an event that belongs to no session. A session does so with its own.
func (j *Job) say(e event.Event) {
	j.cfg.publish(e)
	event.Log(j.ownLog(), event.Record{Event: e})
}

// ownLog returns the logger for what belongs to no session.
func (j *Job) ownLog() *slog.Logger {
	j.mu.Lock()
	generation := j.generation
	j.mu.Unlock()
	return j.cfg.Logger.With("guest", j.cfg.Name, "generation", generation)
}

// tellAlone tells why no secondary is found: each refusal once, and that nobody is reached
// once. What was told last comes with the next call.
func (j *Job) tellAlone(err error, told string) string {
	why := err.Error()
	switch {
	case isRefusal(err):
		if why != told {
			j.say(event.ProtectionRefused{Mode: event.ModePrimary, Error: why})
		}
		return why
	case told == "":
		j.ownLog().Info("the other host is not reached", "side", event.ModePrimary.String(), "checkpoint", uint64(0), "error", err)
		return why
	}
	return told
}

// unable is called when a method of the Guest or of a Network, which has worked before, keeps
// this host from its side of a session. The guest stays as it is, running where it runs. The job
// tells why, each reason once, and waits, while it is in that state, before it tries again.
func (j *Job) unable(ctx context.Context, in State, err error) error {
	j.note(err)
	if why := err.Error(); why != j.hindered {
		j.hindered = why
		mode := event.ModePrimary
		if in == Waiting {
			mode = event.ModeSecondary
		}
		j.say(event.ProtectionRefused{Mode: mode, Error: why})
	}
	act, end := j.while(ctx, in)
	defer end()
	wait.For(act, maxRedial)
	return nil // Run's own end is seen where the states are walked
}

// isRefusal reports whether an attempt to reach the other host has failed by what one of the
// two is or has, and so will fail again, and not because nobody has answered.
func isRefusal(err error) bool {
	var (
		refused *RefusedError
		unknown *tls.CertificateVerificationError
		alert   *net.OpError
	)
	return errors.As(err, &refused) || errors.As(err, &unknown) || errors.As(err, &alert) && alert.Op == "remote error" // of TLS
}
