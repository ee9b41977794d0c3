package main

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// simMachine is the guest in Go.
type simMachine struct {
	*colotest.VM
	out sender
	nic simNIC
}

// simNIC adds to colotest.VM what that lacks: packets to the guest. A vCPU takes them
// when it sends, which is on its goroutine and not in a pause. It is a vmstate.Device: an
// answer that could not be passed on is part of the guest.
type simNIC struct {
	in      *inputs
	answers []answered
	dirty   []uint64 // a bitmap of the pages that input has changed; atomic
}

type answered struct {
	size uint32 // 0: none
	data []byte
}

func newSimMachine(cfg trial.SideConfig, boot bool, out sender, write writer) (machine, error) {
	p := cfg.Guest
	s := &simMachine{out: out, nic: simNIC{in: newInputs(p.VCPUs), answers: make([]answered, p.VCPUs)}}
	gc := colotest.VMConfig{
		VCPUs: p.VCPUs, Pages: p.Pages, Touch: p.Touch, TSCPerMille: p.TSCPerMille, Seed: p.Seed,
		Memory: cfg.Memory, Interval: cfg.Pace, Output: s.output, Disk: p.Disk, DiskEvery: p.DiskEvery,
	}
	if write != nil {
		gc.Write = write
	}
	var err error
	if s.VM, err = colotest.NewVM(gc); err != nil {
		return nil, err
	}
	s.nic.dirty = make([]uint64, (len(s.VM.Memory())/ram.PageSize+63)/64)
	if !boot {
		clear(s.VM.Memory())
	}
	return s, nil
}

// Register registers the devices.
func (m *simMachine) Register(reg *vmstate.Registry) error {
	return errors.Join(
		m.VM.Register(reg),
		reg.Register(vmstate.Entry{Name: "lockstep-nic", Version: 1, MinVersion: 1}, &m.nic),
		reg.Register(m.nic.in.entry(), m.nic.in),
	)
}

func (m *simMachine) Deliver(packet []byte) error { return m.nic.in.deliver(packet) }

// output sends the frame of a round; the answers to the input of the vCPU go first.
func (m *simMachine) output(frame []byte) error {
	f, err := guest.ParseFrame(frame)
	if err != nil {
		return err
	}
	a := &m.nic.answers[f.VCPU]
	for {
		if a.size > 0 {
			if err := m.out(a.data[:a.size]); err != nil {
				return err
			}
			a.size = 0
		}
		taken, err := m.nic.in.take(f.VCPU, func(input []byte) error { return m.answer(f.VCPU, input) })
		if err != nil {
			return err
		}
		if !taken {
			return m.out(frame)
		}
	}
}

// answer lets a vCPU take an input, and keeps what it answers. The pages are
// marked after they were written, as colotest.VM does it.
func (m *simMachine) answer(vcpu int, input []byte) error {
	mem := m.VM.Memory()
	off, n, err := guest.PutInput(mem, vcpu, input)
	if err != nil {
		return err
	}
	reply, off2, n2, err := guest.Answer(mem, vcpu)
	if err != nil {
		return err
	}
	for _, r := range [][2]uint64{{off, n}, {off2, n2}} {
		for page := r[0] / ram.PageSize; page*ram.PageSize < r[0]+r[1]; page++ {
			atomic.OrUint64(&m.nic.dirty[page/64], 1<<(page%64))
		}
	}
	if reply == 0 {
		return nil
	}
	b, err := guest.Emitted(mem, reply)
	if err != nil {
		return err
	}
	a := &m.nic.answers[vcpu]
	a.data = append(a.data[:0], b...)
	a.size = uint32(len(b))
	return nil
}

// ReadDirty adds what input has changed to the guest's log. (A ram.DirtyLog.)
func (m *simMachine) ReadDirty(block string, bitmap []uint64) error {
	if err := m.VM.ReadDirty(block, bitmap); err != nil {
		return err
	}
	for i := range m.nic.dirty {
		bitmap[i] |= atomic.SwapUint64(&m.nic.dirty[i], 0)
	}
	return nil
}

// VMState names the answers that wait. (A vmstate.Device.)
func (n *simNIC) VMState(f *vmstate.Fields) {
	for i := range n.answers {
		a := &n.answers[i]
		f.Uint32(fmt.Sprintf("size%d", i), &a.size)
		f.Bytes(fmt.Sprintf("answer%d", i), vmstate.Resize(f, &a.data, uint64(a.size), guest.FrameSize))
	}
}
