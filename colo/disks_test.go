package colo_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

// fullDisk is a disk of a guest. One write of it waits for a checkpoint, as
// one vCPU does then, until it is drained.
type fullDisk struct {
	*colotest.Disk
	drained chan struct{}
	once    sync.Once
}

func (d *fullDisk) Drain() { d.once.Do(func() { close(d.drained) }) }

func (d *fullDisk) DiskInfo() replication.DiskInfo {
	return replication.DiskInfo{Name: "vda", Mode: event.ModeSecondary, State: "running", Lag: time.Second}
}

// waiting is a VM one of whose vCPUs waits for a disk.
type waiting struct {
	colo.VM
	disk *fullDisk
}

func (v *waiting) Pause(ctx context.Context) error {
	select {
	case <-v.disk.drained:
		return v.VM.Pause(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestDisksAreDrainedBeforeTheGuestIsPaused(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fullDisk{drained: make(chan struct{})}
				x := newPair(t, options{
					primary: func(c *colo.PrimaryConfig) {
						c.CheckpointDelay = time.Second
						if mode == event.ModePrimary {
							d.Disk = c.Disks[0].(*colotest.Disk)
							c.VM, c.Disks = &waiting{c.VM, d}, replication.Group{d}
						}
					},
					secondary: func(c *colo.SecondaryConfig) {
						if mode == event.ModeSecondary {
							d.Disk = c.Disks[0].(*colotest.Disk)
							c.VM, c.Disks = &waiting{c.VM, d}, replication.Group{d}
						}
					},
				})
				x.start(t.Context())
				time.Sleep(2500 * time.Millisecond)
				in := x.primary.Info()
				if in.State != colo.StateProtected || in.Checkpoints != 2 {
					t.Errorf("%+v", in)
				}
				if mode == event.ModeSecondary {
					in = x.secondary.Info()
				}
				if len(in.Disks) != 1 || in.Disks[0].Name != "vda" {
					t.Errorf("the disks are %+v", in.Disks)
				}
				line, err := json.Marshal(in)
				if err != nil || !strings.Contains(string(line), `"disks":[{"name":"vda","mode":"secondary","state":"running",`) || !strings.Contains(string(line), `"lag-ns":1000000000`) {
					t.Errorf("%s, %v", line, err)
				}
				x.secondary.Failover()
				x.wait()
				x.close()
			})
		})
	}
}
