package protect

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// brokenNIC is a network that ends, as one does whose device is taken away.
type brokenNIC struct {
	paced
	ends chan error
}

func (n brokenNIC) Run(ctx context.Context, h NetworkHost) error {
	go n.paced.Run(ctx, h)
	return <-n.ends
}

// shapeless is a guest that cannot name its devices.
type shapeless struct{ Guest }

var errShapeless = errors.New("no devices")

func (shapeless) Register(*vmstate.Registry) error { return errShapeless }

// Whoever watches a job, and did not call Run, hears why it has ended: from the moment in which
// it says that it has.
func TestWhatHasEndedAJobIsItsLastError(t *testing.T) {
	errGone := errors.New("the device is gone")
	for what, c := range map[string]struct {
		change func(*Config, chan error)
		want   error
	}{
		"a network": {func(c *Config, ends chan error) { c.Network[0] = brokenNIC{c.Network[0].(paced), ends} }, errGone},
		"a guest":   {func(c *Config, ends chan error) { c.Guest = shapeless{c.Guest} }, errShapeless},
	} {
		bubble(t, what, func(t *testing.T, w *world) {
			w.guest.Interval = 20 * time.Millisecond
			ends, told, booted := make(chan error, 1), make(chan error, 1), make(chan struct{})
			var a *host
			a = w.boot("a", true, func(cfg *Config) {
				c.change(cfg, ends)
				event.Subscribe(cfg.Events, func(e event.JobStatusChange) {
					if e.State == Concluded.String() {
						<-booted
						told <- a.job.Query().LastError
					}
				})
			})
			close(booted)
			ends <- errGone
			<-a.done
			if err := <-told; !errors.Is(a.err, c.want) || !errors.Is(err, c.want) {
				t.Errorf("Run has ended by %v, and the last error is %v, want %v", a.err, err, c.want)
			}
		})
	}
}
