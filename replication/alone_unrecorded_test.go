package replication

import (
	"bytes"
	"context"
	"testing"
)

// A guest that would go on without its secondary, and without a record of it, could be
// taken for an older one than a secondary that has gone on too. It changes nothing.
func TestAGuestWhoseGenerationCannotBeRecordedWritesNothing(t *testing.T) {
	ctx := context.Background()
	local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, evacuated)), newMetaDevice(evacuated)
	p := primaryOn(t, local, ldev)
	s, err := NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 0, SectorSize) // its place is marked from now on
	ldev.failSync = func() error { return errInjected }
	wantErr(t, "to go on alone", p.Stop(ctx, true), errInjected)
	_, err = p.WriteAt(make([]byte, SectorSize), 0)
	wantErr(t, "a write after it", err, errInjected)
	wantErr(t, "zeroes", p.WriteZeroes(0, SectorSize), errInjected)
	want(t, "the disk", p, 0x22, 0, SectorSize)
	must(t, p.Sync())
}
