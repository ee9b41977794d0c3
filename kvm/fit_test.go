//go:build linux && amd64

package kvm_test

import (
	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var (
	_ colo.VM        = (*kvm.VM)(nil)
	_ ram.DirtyLog   = (*kvm.VM)(nil)
	_ ram.LogSwitch  = (*kvm.VM)(nil)
	_ ram.Idler      = (*kvm.VM)(nil)
	_ vmstate.Device = (*kvm.VCPUState)(nil)
	_ vmstate.Device = (*kvm.ChipState)(nil)
	_ vmstate.Device = (*kvm.ClockState)(nil)
)
