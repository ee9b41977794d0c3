package main

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
)

// A network that is about to change its sides takes nothing for the moment. A guest that ends
// just then remembers the round whose frame was refused, and that frame leaves all the same.
func TestAGuestThatEndsHasSentWhatItRemembers(t *testing.T) {
	for _, backend := range []string{"sim", "kvm"} {
		t.Run(backend, func(t *testing.T) {
			if backend == "kvm" {
				require.Usable(t, require.KVM, kvm.Probe)
			}
			var mu sync.Mutex
			full, refused, taken := false, make(chan struct{}), new(sent)
			out := func(b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if full {
					select {
					case <-refused:
					default:
						close(refused)
					}
					return proxy.ErrFull
				}
				taken.note(b)
				return nil
			}
			fill := func(on bool) {
				mu.Lock()
				defer mu.Unlock()
				full = on
			}
			m, err := newMachine(trial.SideConfig{Backend: backend, Start: true, Memory: 16 << 20, Guest: guest.Params{VCPUs: 1, Pages: 16, Touch: 2, Seed: 1}}, out, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			ctx, end := context.WithCancel(context.Background())
			var ran sync.WaitGroup
			ran.Go(func() { m.Run(ctx) })
			defer ran.Wait()
			defer end()
			if err := m.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			fill(true)
			<-refused
			time.AfterFunc(5*time.Millisecond, func() { fill(false) })
			h, err := taken.pauseSettled(ctx, m, 1)
			if err != nil {
				t.Fatal(err)
			}
			if left := taken[0].Load(); left == 0 || left != h[0].Last() {
				t.Errorf("round %d has left, %d is remembered", left, h[0].Last())
			}
		})
	}
}
