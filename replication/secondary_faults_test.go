package replication

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// A secondary with a Journal, each of whose operations fails in turn.

// Ways in which an operation of a device fails.
const (
	failsOnce  = iota // without an effect
	failsAll          // and so do all later ones of the device, as if it were full or gone
	failsTorn         // with half of its effect
	failsShort        // as failsTorn, and without an error
	failures
)

// faultyDisk is a disk one of whose operations fails.
type faultyDisk struct {
	*fakeDisk
	at  *int // operations of the host until then
	how int

	failing bool
}

// fails counts an operation, and reports whether it is the one that fails.
func (d *faultyDisk) fails() bool {
	*d.at--
	if *d.at == 0 && d.how == failsAll {
		d.failing = true
	}
	return *d.at == 0 || d.failing
}

func (d *faultyDisk) ReadAt(p []byte, off int64) (int, error) {
	if !d.fails() {
		return d.fakeDisk.ReadAt(p, off)
	}
	n := 0
	if d.how >= failsTorn {
		n, _ = d.fakeDisk.ReadAt(p[:len(p)/2], off)
	}
	if d.how == failsShort {
		return n, io.EOF
	}
	return n, errInjected
}

func (d *faultyDisk) WriteAt(p []byte, off int64) (int, error) {
	if !d.fails() {
		return d.fakeDisk.WriteAt(p, off)
	}
	n := 0
	if d.how >= failsTorn {
		n, _ = d.fakeDisk.WriteAt(p[:len(p)/2/SectorSize*SectorSize], off)
	}
	if d.how == failsShort {
		return n, nil
	}
	return n, errInjected
}

func (d *faultyDisk) WriteZeroes(off, n int64) error {
	if !d.fails() {
		return WriteZeroes(d.fakeDisk, off, n)
	}
	if d.how >= failsTorn {
		WriteZeroes(d.fakeDisk, off, n/2/SectorSize*SectorSize)
	}
	return errInjected
}

// Sync loses what is pending when it fails.
func (d *faultyDisk) Sync() error {
	if d.fails() {
		d.fakeDisk.mu.Lock()
		defer d.fakeDisk.mu.Unlock()
		d.fakeDisk.pending = d.fakeDisk.pending[:0]
		return errInjected
	}
	return d.fakeDisk.Sync()
}

// faultyRun is a life of a secondary. It returns how many operations are left, and fails
// the test if the guest sees, or the host finds after a power cut, a disk that is not one
// of those that may be.
func faultyRun(t *testing.T, seed uint64, at, how int) (left int) {
	const size = 24 * BlockSize
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 5))
	var devices [3]*fakeDisk // secondary disk, hidden and active device
	var faulty [3]*faultyDisk
	for i, n := range []int{size, minJournal, minJournal} {
		devices[i] = newPoweredFake(make([]byte, n))
		faulty[i] = &faultyDisk{fakeDisk: devices[i], at: &at, how: how}
	}
	copy(devices[0].data[:size/2], bytes.Repeat([]byte{9}, size/2))
	devices[0].settle()
	where := fmt.Sprintf("seed %d, operation %d, failure %d", seed, at, how)

	var allowed [][]byte // what the disk may be after a power cut
	primary := bytes.Clone(devices[0].data)
	guest := bytes.Clone(primary)
	started := func() bool {
		j, err := OpenJournal(faulty[1], faulty[2])
		if err != nil {
			return false
		}
		s, err := NewSecondary(faulty[0], SecondaryConfig{Journal: j})
		if err != nil || s.Start(ctx) != nil {
			return false
		}
		allowed = [][]byte{bytes.Clone(primary)}
		change := func(d Disk, image []byte) bool { return changeSome(rng, d, image) == nil }
		sees := func() {
			p := make([]byte, size)
			if _, err := s.ReadAt(p, 0); err == nil && !bytes.Equal(p, guest) {
				t.Fatalf("%s: in state %v the guest sees another disk, at %d", where, s.State(), firstDifference(p, guest))
			}
		}
		for epoch := uint64(1); epoch < 4; epoch++ {
			for range rng.IntN(5) {
				if !change(s.Export(), primary) {
					sees()
					return true // what is on the disk is of no epoch, and no checkpoint follows
				}
				if rng.IntN(2) == 0 && !change(s, guest) {
					return true // a part of it may be there
				}
				sees()
			}
			if err := s.Checkpoint(ctx, epoch); err != nil {
				sees()
				allowed = append(allowed, primary)   // it may have been recorded
				if s.Checkpoint(ctx, epoch) == nil { // what failed may have been nothing that matters
					allowed = [][]byte{primary}
				}
				return true
			}
			allowed = [][]byte{bytes.Clone(primary)}
			guest = bytes.Clone(primary)
			sees()
		}
		for range 3 {
			if !change(s.Export(), primary) || !change(s, guest) {
				return true
			}
		}
		failover := rng.IntN(3) > 0
		err = s.Stop(ctx, failover)
		if failover {
			sees()
			switch {
			case err == nil:
				allowed = [][]byte{guest}
			default:
				allowed = append(allowed, guest)
			}
		}
		return true
	}()
	for i, d := range devices {
		devices[i] = d.cutPower(rng)
	}
	if !started {
		return at
	}
	j, err := OpenJournal(devices[1], devices[2])
	if err != nil {
		t.Fatalf("%s: the journal cannot be opened afterwards: %v", where, err)
	}
	if _, _, err := j.Recover(ctx, devices[0]); err != nil {
		t.Fatalf("%s: recovery: %v", where, err)
	}
	for _, image := range allowed {
		if bytes.Equal(devices[0].data, image) {
			return at
		}
	}
	t.Fatalf("%s: the disk after a power cut is none of the %d that it may be; it differs from the first at %d", where, len(allowed), firstDifference(devices[0].data, allowed[0]))
	return at
}

// Whatever operation of its devices fails, and how, a secondary shows its guest the
// last checkpoint with its own writes, and its disk is that of a checkpoint after a power
// cut.
func TestSecondaryAnyOfWhoseOperationsFails(t *testing.T) {
	seeds, step := uint64(3), 1
	if testing.Short() {
		seeds, step = 1, 19
	}
	runs := 0
	for seed := range seeds {
		for how := range failures {
			for at := 1; ; at += step {
				runs++
				if left := faultyRun(t, seed, at, how); left > 0 { // it ended before that operation
					faultyRun(t, seed, at-left, how) // its last one
					break
				}
			}
		}
	}
	if runs < 300/step {
		t.Errorf("%d operations have failed, want some hundreds", runs)
	}
}

// changeSome writes something to a few sectors of a disk, zeroes now and then, and to its image where
// the disk has taken it.
func changeSome(rng *rand.Rand, d Disk, image []byte) error {
	size := int64(len(image))
	off := rng.Int64N(size/SectorSize) * SectorSize
	n := min(SectorSize*(1+rng.Int64N(20)), size-off)
	p := bytes.Repeat([]byte{byte(1 + rng.IntN(250))}, int(n))
	var err error
	if rng.IntN(4) == 0 {
		clear(p)
		err = WriteZeroes(d, off, n)
	} else {
		_, err = d.WriteAt(p, off)
	}
	if err == nil {
		copy(image[off:], p)
	}
	return err
}
