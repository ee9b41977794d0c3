//go:build linux && amd64

package main

import (
	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// What a VM of package kvm can do, the machine that has one in it can.
var (
	_ ram.LogSwitch   = (*kvmMachine)(nil)
	_ ram.DirtyKeeper = (*kvmMachine)(nil)
	_ ram.Idler       = (*kvmMachine)(nil)
	_ colo.Throttler  = (*kvmMachine)(nil)
	_ colo.Stopper    = (*kvmMachine)(nil)
)
