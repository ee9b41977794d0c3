package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/replication"
)

// disks returns both sides' disks, attached and synchronised. What they run
// ends with the test.
func disks(t *testing.T, size uint64) (prim, sec *disk) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		group.Wait()
		if err := errors.Join(prim.close(), sec.close()); err != nil {
			t.Error(err)
		}
	})
	open := func(side string) *disk {
		name := filepath.Join(dir, side)
		f, err := replication.CreateFile(name, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		d, err := openDisk(trial.SideConfig{Side: side, Disk: name, Generation: 3, Guest: guest.Params{Disk: size}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	prim, sec = open(trial.Primary), open(trial.Secondary)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	group.Go(func() { sec.serve(ctx, l) })
	if err := prim.attach(ctx, l.Addr().String(), 2, &group); err == nil {
		t.Error("the primary of another generation was let in")
	}
	if err := prim.write([]byte("before"), 100, false); err != nil {
		t.Fatal(err)
	}
	if err := prim.attach(ctx, l.Addr().String(), 3, &group); err != nil {
		t.Fatal(err)
	}
	return prim, sec
}

func TestAVCPUThatWaitsForItsDiskDoesNotOutlastTheSession(t *testing.T) {
	prim, _ := disks(t, 1<<20)
	if err := prim.replicas().Mark(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { // more than is ever held until the secondary says loaded
		block := make([]byte, 1<<20)
		var err error
		for range 128 {
			err = errors.Join(err, prim.write(block, 0, false))
		}
		done <- errors.Join(err, prim.write(block[:512], 0, true))
	}()
	prim.replicas().Cut() // what a session does
	if err := <-done; err != nil {
		t.Errorf("a lost secondary is not the guest's error: %v", err)
	}
	if err := prim.primary.Mark(t.Context(), 1); !errors.Is(err, replication.ErrBroken) {
		t.Errorf("the next mark: %v", err)
	}
}

func TestAFailoverShutsThePrimaryOutAndKeepsWhatTheMemoryKnows(t *testing.T) {
	prim, sec := disks(t, 64<<10)
	ctx := t.Context()
	if err := errors.Join(
		prim.replicas().Mark(ctx, 0), sec.replicas().Start(ctx), prim.replicas().Start(ctx), prim.replicas().Loaded(ctx, 0),
		prim.write([]byte("ahead of the checkpoint"), 100, true), // there before Stop
		sec.write([]byte("the survivor's"), 9000, true),
		sec.replicas().Stop(ctx, true),
		prim.write([]byte("of the dead"), 200, false),
		sec.settle(),
	); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 64<<10)
	copy(want[100:], "before")
	copy(want[9000:], "the survivor's")
	got := make([]byte, len(want))
	if _, err := sec.image.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the image has %q, %q, %q (%v)", got[100:130], got[200:220], got[9000:9020], err)
	}
}
