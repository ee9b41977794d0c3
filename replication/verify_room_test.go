package replication

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// smallRoomRig returns a pair that runs, whose copies differ everywhere, and whose secondary has room for
// a small part of that.
func smallRoomRig(t *testing.T, bus *event.Bus) (p *Primary, s *Secondary, local, disk *fakeDisk) {
	t.Helper()
	const size = 24 * ChunkSize
	local, disk = newFake(size, 0x11), newFake(size, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true, Events: bus})
	must(t, err)
	s, err = NewSecondary(disk, SecondaryConfig{HiddenBytes: 80 * BlockSize})
	must(t, err)
	must(t, p.Attach(newFakeRemote(s.Export(), 1)))
	must(t, p.Mark(t.Context(), 0))
	must(t, s.Start(t.Context()))
	must(t, p.Loaded(t.Context(), 0))
	must(t, p.Start(t.Context()))
	copy(disk.data, bytes.Repeat([]byte{0x77}, size))
	return p, s, local, disk
}

// A repair waits for each checkpoint that makes room for it. That is no attempt that others' writes have thwarted, of
// which there are three where no writes may be held up.
func TestARepairWaitsForRoomForWhatItReplaces(t *testing.T) {
	for name, maxHold := range map[string]time.Duration{"": 0, "holding up no writes": -1} {
		t.Run(name, func(t *testing.T) {
			due := make(chan struct{}, 1)
			bus := new(event.Bus)
			event.Subscribe(bus, func(event.DiskOverlayFull) {
				select {
				case due <- struct{}{}:
				default:
				}
			})
			verified, heard := event.DiskVerified{}, 0
			event.Subscribe(bus, func(e event.DiskVerified) { verified = e; heard++ })
			p, s, local, disk := smallRoomRig(t, bus)
			var checkpoints sync.WaitGroup
			epoch := uint64(0)
			checkpoints.Go(func() {
				for range due {
					epoch++
					checkpointBoth(t, p, s, epoch)
				}
			})
			differ, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: s.Export(), Repair: RepairSecondary, MaxHold: maxHold})
			close(due)
			checkpoints.Wait()
			must(t, err)
			size := local.Size()
			if verified.Compared != size || verified.Repaired != size || differ.Bytes() != size || heard != 1 {
				t.Errorf("%d bytes differ; heard %d times: %+v", differ.Bytes(), heard, verified)
			}
			checkpointBoth(t, p, s, epoch+1)
			wantBytes(t, "the secondary", disk.data, local.data, 0)
			if epoch < 4 {
				t.Errorf("%d checkpoints were asked for", epoch)
			}
		})
	}
}

func TestARepairThatGetsNoRoomBreaksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _, _ := smallRoomRig(t, nil)
		running, end := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { p.Run(running) })
		defer run.Wait()
		defer end()
		cfg := VerifyConfig{Secondary: s.Export(), Repair: RepairSecondary}
		begin := time.Now()
		_, err := p.VerifyOnline(t.Context(), cfg)
		wantErr(t, "nobody makes a checkpoint", err, ErrFull)
		if d := time.Since(begin); d != defaultTimeout {
			t.Errorf("after %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = p.VerifyOnline(ctx, cfg)
		wantErr(t, "the context ends", err, context.DeadlineExceeded)
		ended := make(chan error)
		go func() { _, err := p.VerifyOnline(t.Context(), cfg); ended <- err }()
		synctest.Wait()
		p.Drain()
		synctest.Wait()
		checkpointBoth(t, p, s, 1)
		synctest.Wait()
		must(t, s.Err())
		p.Cut()
		wantErr(t, "cut", <-ended, ErrCut)
		must(t, s.Err())
	})
}
