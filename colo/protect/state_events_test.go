package protect

import (
	"slices"
	"testing"

	"github.com/gocolo/lockstep/event"
)

// A job that is stopped while somebody is still being told of its last state is concluded
// after that state for everybody, and whoever stops it does not wait for who is told.
func TestChangesOfStateAreToldInTheirOrder(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var a *host
		var heard []string
		var second int // when the last subscriber was told of Alone, how many had been heard
		booted, looked := make(chan struct{}), make(chan struct{})
		moved := func(f func(string)) func(event.JobStatusChange) {
			return func(e event.JobStatusChange) { f(e.State) }
		}
		a = w.boot("a", true, func(c *Config) {
			event.Subscribe(c.Events, moved(func(s string) {
				heard = append(heard, s)
				if s == Alone.String() {
					<-booted
					done := make(chan error)
					go func() { done <- a.job.do(doPause, "meanwhile") }()
					if err := <-done; err != nil {
						t.Error(err)
					}
					if s := a.job.State(); s != Paused {
						t.Errorf("the job is %v", s)
					}
					close(looked)
				}
			}))
			event.Subscribe(c.Events, moved(func(s string) {
				if s == Alone.String() {
					second = len(heard)
				}
			}))
		})
		close(booted)
		a.is(Paused)
		<-looked
		a.halt()
		i := slices.Index(heard, Alone.String())
		if i < 0 || i+1 == len(heard) || heard[i+1] != Paused.String() || second != i+1 {
			t.Errorf("told: %q; all had been told of alone after %d", heard, second)
		}
	})
}
