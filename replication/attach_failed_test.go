package replication

import (
	"bytes"
	"testing"
)

// The good copy of a disk that could not be flushed is the other side's. It is neither adopted nor overwritten by the primary of
// that disk, whenever the flush has failed, unless the guest is to be brought away from there.
func TestTheGoodCopyIsNotOverwrittenByADiskThatHasFailed(t *testing.T) {
	ctx := t.Context()
	for _, when := range []string{"before it is attached", "before it is synchronised", "in the middle of that"} {
		local := newFake(3*copyStep, 0x11)
		p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
		must(t, err)
		disk := newFake(3*copyStep, 0)
		s, err := NewSecondary(disk, SecondaryConfig{})
		must(t, err)
		protectFirst(t, p, s)
		checkpointBoth(t, p, s, 1)
		must(t, p.Stop(ctx, false))
		must(t, s.Stop(ctx, false))
		write(t, p, 0x22, 0, 3*copyStep)
		fail := func() {
			local.failSync = func() error { return errInjected }
			wantErr(t, "a flush", p.Sync(), errInjected)
		}
		copied := 0
		switch when {
		case "before it is attached":
			fail()
			wantErr(t, when, joinOver(p, s), errInjected)
			if id := s.Identity(); id.State != CopyClean {
				t.Errorf("%s: the good copy is %v", when, id)
			}
		default:
			must(t, joinOver(p, s))
			if when == "in the middle of that" {
				copied = copyStep
				local.failRead = func(off int64, _ int) error {
					if off == 0 {
						local.mu.Unlock() // for the flush
						defer local.mu.Lock()
						fail()
					}
					return nil
				}
			} else {
				fail()
			}
			wantErr(t, when, p.Synchronise(ctx, SyncConfig{}), errInjected)
		}
		if n := bytes.Count(disk.data, []byte{0x22}); n > copied {
			t.Errorf("%s: %d bytes of the good copy are overwritten, want at most %d", when, n, copied)
		}
	}
}
