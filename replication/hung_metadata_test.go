package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// besideDisk is a disk with its metadata on a device of its own.
type besideDisk struct {
	*fakeDisk
	m *Metadata
}

func (d besideDisk) Metadata() (*Metadata, error) { return d.m, nil }

func TestMetadataThatHangsHoldsUpNobodyForGood(t *testing.T) {
	for _, what := range []string{"write", "sync"} {
		synctest.Test(t, func(t *testing.T) {
			bus, failed := heard[event.DiskFailed]()
			dev := &hangingDisk{fakeDisk: newFake(1<<20, 0), release: make(chan struct{})}
			m, err := OpenMetadata(dev)
			must(t, err)
			p, err := NewPrimary(besideDisk{newFake(testSize, 0x11), m}, PrimaryConfig{Name: "disk0", InSync: true, Events: bus, Overwrite: true})
			must(t, err)
			s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
			must(t, err)
			must(t, joinOver(p, s))
			must(t, p.Synchronise(t.Context(), SyncConfig{}))
			must(t, p.Mark(t.Context(), 0))
			must(t, s.Start(t.Context()))
			must(t, p.Loaded(t.Context(), 0))
			dev.hangs.Store(what)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err = p.Start(ctx)
			wantHung(t, "Start", err, event.ModePrimary, "metadata", opUpdate)
			wantErr(t, "Err", p.Err(), ErrNotRunning)
			wantErr(t, "LocalErr", p.LocalErr(), ErrHung)
			wantErr(t, "Start again", p.Start(t.Context()), ErrHung)
			if len(*failed) != 1 || (*failed)[0].Operation != "metadata" {
				t.Errorf("told %+v", *failed)
			}
			dev.letGo()
			must(t, p.WaitHung(t.Context()))
			if p.State() != None {
				t.Errorf("a start that was given up has had an effect: %v", p.State())
			}
			wantErr(t, "a later change of the metadata", m.Hold(3), ErrHung)
			p.Detach()
		})
	}
}

func TestAMarkOfTheBitmapThatHangsLetsNoWriteBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := &hangingDisk{fakeDisk: newFake(1<<20, 0), release: make(chan struct{})}
		m, err := OpenMetadata(dev)
		must(t, err)
		disk := newFake(testSize, 0x11)
		p, err := NewPrimary(besideDisk{disk, m}, PrimaryConfig{Name: "disk0", InSync: true, Overwrite: true})
		must(t, err)
		s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
		must(t, err)
		protectFirst(t, p, s)
		must(t, p.Stop(t.Context(), true))
		clear(p.peer.intent.disk) // no region is marked
		dev.hangs.Store("sync")
		answer := make(chan error, 1)
		go func() {
			_, err := p.WriteAt(make([]byte, BlockSize), 0)
			answer <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = p.Grow(ctx, 2*testSize, nil) // it waits for the write
		wantHung(t, "Grow", err, event.ModePrimary, "metadata", opUpdate)
		dev.letGo()
		wantErr(t, "the write", <-answer, ErrHung)
		must(t, p.WaitHung(t.Context()))
		want(t, "the disk", disk, 0x11, 0, testSize)
		if p.Size() != testSize {
			t.Error("a growth that was given up has been made")
		}
	})
}
