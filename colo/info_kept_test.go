package colo_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// kept is memory of which each checkpoint leaves three more pages writable than the one before.
type kept struct{ asked uint64 }

func (k *kept) Kept() ram.KeepStats {
	k.asked++
	return ram.KeepStats{Pages: 3 * k.asked, Tried: 2, Idle: 1}
}

// Pages makes it a colo.PageCounter.
func (k *kept) Pages() uint64 { return 0 }

func TestInfoTellsWhichPagesStayWritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				c.RAM = new(kept)
			},
			secondary: func(c *colo.SecondaryConfig) {
				c.RAM = struct {
					colo.Stage
					*kept
				}{c.RAM, new(kept)}
			},
		})
		x.start(t.Context())
		time.Sleep(2500 * time.Millisecond)
		want := ram.KeepStats{Pages: 9, Tried: 2, Idle: 1} // the initial checkpoint and two more
		for side, in := range map[string]colo.Info{"primary": x.primary.Info(), "secondary": x.secondary.Info()} {
			if in.Checkpoints != 2 || in.Kept != want {
				t.Errorf("%s, after %d checkpoints: %+v", side, in.Checkpoints, in.Kept)
			}
			line, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			if member := `"kept":{"pages":9,"tried":2,"idle":1}`; !strings.Contains(string(line), member) {
				t.Errorf("%s has no %s", line, member)
			}
		}
		x.secondary.Failover()
		x.wait()
		x.close()
	})
}
