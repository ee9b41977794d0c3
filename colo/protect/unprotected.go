package protect

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"

	"github.com/gocolo/lockstep/event"
)

// say tells of something that belongs to no session, which would tell of it.
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
