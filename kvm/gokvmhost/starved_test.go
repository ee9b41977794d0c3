//go:build linux && amd64

package gokvmhost_test

import (
	"testing"

	"golang.org/x/sys/unix"

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

// A step that the kernel refuses leaves gokvm's machine as it was: it can be attached later.
func TestAHostThatIsRefusedAStepLeavesNothingBehind(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: 2, Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer gokvmhost.CloseMachine(m)
	attach := func() error {
		h, err := gokvmhost.Attach(m, gokvmhost.Config{})
		if err != nil {
			return err
		}
		return h.Close()
	}
	before := leaks.Now(t)
	for name, request := range map[string]uint32{ // linux/kvm.h
		"KVM_CHECK_EXTENSION": 0xae03, "KVM_GET_MSR_INDEX_LIST": 0xc004ae02, "KVM_GET_SUPPORTED_CPUID": 0xc008ae05,
		"KVM_SET_USER_MEMORY_REGION": 0x4020ae46, "KVM_GET_VCPU_MMAP_SIZE": 0xae04, "KVM_SET_CPUID2": 0x4008ae90,
	} {
		call := leaks.Call{Number: unix.SYS_IOCTL, Args: map[int]uint32{1: request}}
		if err := leaks.Refuse(t, call, unix.EXFULL, attach); err == nil {
			t.Errorf("without %s a machine is attached", name)
		}
		if !before.Check(t, "an Attach without "+name) {
			return
		}
	}
	if err := attach(); err != nil {
		t.Error("then:", err)
	}
}
