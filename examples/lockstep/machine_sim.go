package main

import (
	"errors"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/vmstate"
)

// simMachine is the guest in Go.
type simMachine struct {
	*colotest.Guest
	memory
}

func newSimMachine(cfg sideConfig, out *filter.Buffer, disk *disk) (machine, error) {
	p := cfg.Guest
	gc := colotest.GuestConfig{
		VCPUs: p.VCPUs, Pages: p.Pages, Touch: p.Touch, TSCPerMille: p.TSCPerMille, Seed: p.Seed,
		Memory: cfg.Memory, Interval: pace, Output: out.WritePacket, Disk: p.Disk, DiskEvery: p.DiskEvery,
	}
	if disk != nil {
		gc.Write = disk.write
	}
	g, err := colotest.NewGuest(gc)
	if err != nil {
		return nil, err
	}
	if cfg.Side == secondary {
		clear(g.Memory()) // the guest comes over the wire, all of it
	}
	m, err := newMemory(cfg.Side, g.Blocks(), g)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return &simMachine{g, m}, nil
}

func (m *simMachine) Register(reg *vmstate.Registry) error {
	return errors.Join(m.memory.Register(reg), m.Guest.Register(reg))
}

func (m *simMachine) Memory() []byte { return m.Guest.Memory() }

func (m *simMachine) Close() error { return errors.Join(m.memory.Close(), m.Guest.Close()) }
