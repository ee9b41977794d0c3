package standby_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// In whatever order a Copy, its views and its replicas are closed, and how often, and with a stream that broke off
// or without any: nothing is left, and a Copy that refuses to be closed can be closed later.
func TestACopyAndWhatWasMadeOfItAreClosedInAnyOrder(t *testing.T) {
	stream := put(t, replay(t, noneGuest(t), standby.Config{}, nil).Copy)
	before := leaks.Now(t)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		g := standby.New(standby.Config{})
		if r.IntN(8) > 0 {
			cut := len(stream)
			if r.IntN(3) == 0 {
				cut = r.IntN(cut)
			}
			err := g.Read(qemufile.NewReader(bytes.NewReader(stream[:cut])))
			if (err == nil) != (cut == len(stream)) {
				t.Fatalf("seed %d: %d of %d bytes: %v", seed, cut, len(stream), err)
			}
		}
		var replicas []*standby.Replica
		var views []*standby.View
		closed := false
		for range 12 {
			switch r.IntN(6) {
			case 0:
				if closed {
					continue
				}
				if p, _, err := g.NewReplica(new(vmstate.Registry), ram.SaverConfig{}); err == nil {
					replicas = append(replicas, p)
				}
			case 1:
				if closed {
					continue
				}
				if v, err := g.NewView(1 << 20); err == nil {
					views = append(views, v)
				}
			case 2:
				if len(views) > 0 {
					if err := views[r.IntN(len(views))].Close(); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				}
			case 3:
				if n := len(replicas); n > 0 {
					for range 1 + r.IntN(2) {
						if err := replicas[n-1].Close(); err != nil {
							t.Errorf("seed %d: %v", seed, err)
						}
					}
					replicas = replicas[:n-1]
				}
			case 4:
				if len(views) > 0 {
					err := views[r.IntN(len(views))].Put(qemufile.NewWriter(io.Discard))
					if closed && !errors.Is(err, standby.ErrNothing) && !errors.Is(err, standby.ErrStale) {
						t.Errorf("seed %d: a view of a Copy that is closed is read: %v", seed, err)
					}
				}
			case 5:
				if err := g.Close(); (err == nil) != (len(replicas) == 0) {
					t.Errorf("seed %d: with %d replicas: %v", seed, len(replicas), err)
				} else if err == nil {
					closed = true
				}
			}
		}
		for _, p := range replicas {
			p.Close()
		}
		if err := g.Close(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, v := range views {
			if err := v.Close(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
	}
	before.Check(t, "all were closed")
}
