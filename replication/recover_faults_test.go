package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// crashedSecondary returns the devices of a secondary whose host has crashed, behind its first
// checkpoint or in a failover, and what its disk is to be.
func crashedSecondary(t *testing.T, failover bool) (devices [3]*fakeDisk, want []byte) {
	t.Helper()
	ctx := t.Context()
	for i, n := range []int{24 * BlockSize, minJournal, minJournal} {
		devices[i] = newPoweredFake(make([]byte, n))
	}
	j, err := OpenJournal(devices[1], devices[2])
	must(t, err)
	s, err := NewSecondary(devices[0], SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s.Export(), 0x22, 0, 12*BlockSize)
	must(t, s.Checkpoint(ctx, 1))
	want = bytes.Clone(devices[0].data)
	write(t, s, 0x44, 3*SectorSize, 2*BlockSize)
	write(t, s.Export(), 0x33, 5*SectorSize, 4*BlockSize)
	must(t, WriteZeroes(s.Export(), 8*BlockSize, 3*BlockSize))
	if failover {
		copy(want[3*SectorSize:], bytes.Repeat([]byte{0x44}, 2*BlockSize))
		devices[0].failWrite = func(int64, int) error { return errInjected }
		if err := s.Stop(ctx, true); err == nil {
			t.Fatal("a failover whose disk cannot be written")
		}
		devices[0].failWrite = nil
	}
	return devices, want
}

// Each operation of a recovery fails, in each way. Then the recovery fails as a whole, or it
// has succeeded; and the next one, after a power cut, finds what the first was to find.
func TestARecoveryAnyOfWhoseOperationsFailsCanBeRepeated(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	for _, failover := range []bool{false, true} {
		failed, most := 0, 0
		for how := range failures {
			for at := 1; ; at += step {
				why := fmt.Sprintf("failover %v, operation %d, failure %d", failover, at, how)
				devices, want := crashedSecondary(t, failover)
				rng := rand.New(rand.NewPCG(uint64(at), uint64(how)))
				left := at
				var faulty [3]*faultyDisk
				for i := range devices {
					devices[i] = devices[i].cutPower(rng)
					faulty[i] = &faultyDisk{fakeDisk: devices[i], at: &left, how: how}
				}
				err := recoverOn(t.Context(), faulty[0], faulty[1], faulty[2])
				met := left <= 0
				if err == nil {
					wantBytes(t, why+": succeeded", devices[0].data, want, 0)
				} else if failed++; !met {
					t.Fatalf("%s: %v", why, err)
				} else if how < failsShort {
					wantErr(t, why, err, errInjected)
				}
				for i := range devices {
					devices[i] = devices[i].cutPower(rng)
				}
				if err := recoverOn(t.Context(), devices[0], devices[1], devices[2]); err != nil {
					t.Fatalf("%s, and then: %v", why, err)
				}
				wantBytes(t, why+": repeated", devices[0].data, want, 0)
				if !met {
					break
				}
				most = max(most, at)
			}
		}
		if most < 50 || failed < 8 {
			t.Errorf("failover %v: %d of %d operations of a recovery have failed", failover, failed, most)
		}
	}
}

func recoverOn(ctx context.Context, disk, hidden, active Disk) error {
	j, err := OpenJournal(hidden, active)
	if err == nil {
		_, _, err = j.Recover(ctx, disk)
	}
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("taken for corrupt: %w", err)
	}
	return err
}
