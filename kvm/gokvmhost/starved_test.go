//go:build linux && amd64

package gokvmhost_test

import (
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

func TestAHostThatLacksADescriptorLeavesNothingBehind(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	machine := gokvmhost.MachineConfig{VCPUs: 2, Memory: 2 * leaks.LargeBytes}
	t.Run("Create", func(t *testing.T) {
		leaks.Starve(t, func() error {
			h, err := gokvmhost.Create(machine, gokvmhost.Config{})
			if err != nil {
				return err
			}
			return h.Close()
		})
	})
	t.Run("Attach", func(t *testing.T) {
		m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: 2, Memory: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer gokvmhost.CloseMachine(m)
		leaks.Starve(t, func() error {
			h, err := gokvmhost.Attach(m, gokvmhost.Config{})
			if err != nil {
				return err
			}
			return h.Close()
		})
	})
}
