package colo_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// counting is a RAM that says of each round sent ahead how much of it went again.
type counting struct {
	begun int
	again uint64 // pages of 100
}

func (c *counting) Pages() uint64           { return 100 }
func (c *counting) BeginAhead()             { c.begun++ }
func (c *counting) Ahead() (uint64, uint64) { return 100, c.again }

func TestSendingAheadRestsWhereMostGoesAgain(t *testing.T) {
	for name, test := range map[string]struct {
		again uint64
		ahead []uint64 // the checkpoints of 12 that memory was sent ahead of; the first is the synchronisation
	}{
		"little goes again": {50, []uint64{2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
		"most goes again":   {51, []uint64{2, 11}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ram := &counting{again: test.again}
				x := newPair(t, options{
					guest: colotest.VMConfig{Pages: 64, Touch: 16},
					primary: func(c *colo.PrimaryConfig) {
						c.CheckpointDelay, c.AheadThreshold, c.RAM = time.Second, 1, ram
					},
				})
				defer x.close()
				var ahead []uint64
				event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) { // on the session's goroutine
					if ram.begun > len(ahead) {
						ahead = append(ahead, c.Epoch)
					}
					x.p.step(3)
					if c.Epoch == 12 {
						x.pc.Break()
					}
				})
				x.start(t.Context())
				x.wait()
				if !slices.Equal(ahead, test.ahead) {
					t.Errorf("memory was sent ahead of the checkpoints %d, want %d", ahead, test.ahead)
				}
			})
		})
	}
}
