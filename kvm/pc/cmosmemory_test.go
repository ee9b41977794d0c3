//go:build linux && amd64

package pc

import (
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// What CMOS says of the memory above 16 MiB, in units of 64 KiB, ends where the hole begins, however much there is behind it.
func TestCMOSTellsOfTheMemoryBelowTheHole(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for memory, want := range map[uint64]int{1 << 30: 1<<14 - 256, lowMost: 3<<14 - 256, lowMost + 1<<20: 3<<14 - 256} {
		m, err := Create(Config{Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for i, index := range []byte{0x34, 0x35} {
			p := []byte{index}
			if err := m.cmos.Out(0, p); err != nil {
				t.Error(err)
			}
			m.cmos.In(1, p)
			got |= int(p[0]) << (8 * i)
		}
		if got != want {
			t.Errorf("of %#x bytes %#x units are told, want %#x", memory, got, want)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
