package event_test

import (
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
)

// Others publish after a subscriber has panicked under a publisher that recovers, as a server of
// HTTP does, or has ended its goroutine, as a test that fails does.
func TestASubscriberThatDoesNotReturnKeepsNobodyFromPublishing(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic("a subscriber") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := new(event.Bus)
				got := 0
				cancel := bus.SubscribeAll(func(r event.Record) {
					if got++; got == 1 {
						bus.Publish(event.Resume{}) // is delivered all the same
						leave()
					}
				})
				defer cancel()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					defer func() { recover() }()
					bus.Publish(event.Stop{})
				}()
				<-ended
				bus.Publish(event.Stop{})
				if got != 3 {
					t.Errorf("%d events were delivered", got)
				}
			})
		})
	}
}
