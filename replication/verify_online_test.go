package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
)

// verifyRig returns a pair that runs, of which the copies differ in two chunks.
func verifyRig(t *testing.T, bus *event.Bus) (p *Primary, s *Secondary, local, disk *fakeDisk) {
	t.Helper()
	local, disk = newFake(testSize, 0x11), newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true, Name: "d", Events: bus})
	must(t, err)
	s, err = NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	must(t, p.Attach(newFakeRemote(s.Export(), 1)))
	must(t, p.Mark(t.Context(), 0))
	must(t, s.Start(t.Context()))
	must(t, p.Loaded(t.Context(), 0))
	must(t, p.Start(t.Context()))
	disk.data[3*ChunkSize+5]++
	disk.data[7*ChunkSize]++
	return p, s, local, disk
}

func TestVerifyOnlineFindsAndRepairsWhatDiffers(t *testing.T) {
	ctx := context.Background()
	for _, bySums := range []bool{true, false} {
		for _, repair := range []Repair{RepairNone, RepairSecondary, RepairPrimary} {
			bus, heard := heard[event.DiskVerified]()
			p, s, local, disk := verifyRig(t, bus)
			before := bytes.Clone(disk.data)
			cfg := VerifyConfig{Secondary: s.Export(), Repair: repair}
			if bySums {
				cfg.Sums = NewSums(s.Export())
			}
			differ, err := p.VerifyOnline(ctx, cfg)
			must(t, err)
			if !differ.Any(3*ChunkSize, 1) || !differ.Any(7*ChunkSize, 1) || differ.Bytes() != 2*ChunkSize {
				t.Errorf("%d bytes differ, want the chunks 3 and 7", differ.Bytes())
			}
			must(t, p.Mark(ctx, 1))
			repaired := int64(2 * ChunkSize)
			switch repair {
			case RepairNone:
				repaired = 0
				wantBytes(t, "the secondary, as it was", disk.data, before, 0)
			case RepairSecondary:
				want(t, "the secondary", disk, 0x11, 0, testSize)
				want(t, "its guest's view", s, 0x11, 0, 3*ChunkSize)
			case RepairPrimary:
				wantBytes(t, "the primary", local.data, before, 0)
			}
			if e := (*heard)[0]; e != (event.DiskVerified{Disk: "d", Compared: testSize, Different: 2 * ChunkSize, Repaired: repaired, ElapsedNS: e.ElapsedNS}) {
				t.Errorf("heard %+v", e)
			}
		}
	}
}

// While the guest writes and checkpoints are made, copies that are the same are
// never called different.
func TestVerifyOnlineUnderLoad(t *testing.T) {
	ctx := context.Background()
	p, s, _, disk := verifyRig(t, nil)
	copy(disk.data, bytes.Repeat([]byte{0x11}, testSize))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	runCtx, cancel := context.WithCancel(ctx)
	wg.Go(func() { p.Run(runCtx) })
	for w := range uint64(3) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 0))
			for {
				select {
				case <-stop:
					return
				default:
					write(t, p, byte(rng.Uint32()), rng.Int64N(testSize/512)*512, 512)
				}
			}
		})
	}
	wg.Go(func() {
		for epoch := uint64(1); ; epoch++ {
			select {
			case <-stop:
				return
			default:
				checkpointBoth(t, p, s, epoch)
			}
		}
	})
	for range 5 {
		differ, err := p.VerifyOnline(ctx, VerifyConfig{Sums: NewSums(s.Export()), Repair: RepairSecondary})
		if err != nil || !differ.Empty() {
			t.Errorf("%d bytes differ, %v", differ.Bytes(), err)
		}
	}
	close(stop)
	cancel()
	wg.Wait()
}

func TestVerifyOnlineEndsWithItsContextAndItsRemote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _, _ := verifyRig(t, nil)
		cfg := VerifyConfig{Secondary: s.Export()}
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.VerifyOnline(canceled, cfg)
		wantErr(t, "a context that has ended", err, context.Canceled)
		must(t, p.Mark(t.Context(), 1))
		write(t, p, 0x22, 0, 512) // is held: the verification waits for Loaded
		ended := make(chan error)
		go func() { _, err := p.VerifyOnline(t.Context(), cfg); ended <- err }()
		synctest.Wait()
		p.Cut()
		wantErr(t, "cut", <-ended, ErrCut)
		must(t, p.Stop(t.Context(), true))
		_, err = p.VerifyOnline(t.Context(), cfg)
		wantErr(t, "nobody to compare with", err, ErrNotRunning)
		_, err = p.VerifyOnline(t.Context(), VerifyConfig{})
		if err == nil {
			t.Error("nothing to read the secondary with, and no error")
		}
	})
}
