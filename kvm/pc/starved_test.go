//go:build linux && amd64

package pc_test

import (
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/pc"
)

func TestAMachineThatLacksADescriptorOrADeviceLeavesNothingBehind(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	cfg := pc.Config{VCPUs: 2, Memory: 2 * leaks.LargeBytes}
	leaks.Starve(t, func() error {
		m, err := pc.Create(cfg)
		if err != nil {
			return err
		}
		return m.Close()
	})
	before := leaks.Now(t)
	cfg.Devices.Disks = []pc.Disk{{}}
	if m, err := pc.Create(cfg); err == nil {
		m.Close()
		t.Error("a disk without storage was taken")
	}
	before.Check(t, "a machine with a disk that has no storage")
}
