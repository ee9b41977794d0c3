package main

import (
	"errors"
	"fmt"
	"sync"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/vmstate"
)

// maxInputs is how many packets to a vCPU may wait in its NIC.
const maxInputs = 64

var errRing = errors.New("the vCPU's ring is full")

// inputs are the packets to the guest that its vCPUs have not taken: the receive
// rings of its NIC, and a device of the guest, because what is there at a
// checkpoint is part of it. Safe from any goroutine.
type inputs struct {
	mu    sync.Mutex
	rings []ring
}

type ring struct {
	n    uint32 // packets in data
	data []byte // guest.FrameSize bytes each
}

func newInputs(vcpus int) *inputs { return &inputs{rings: make([]ring, vcpus)} }

// deliver takes a copy of a packet. One that is not for this guest is dropped, as
// a NIC does.
func (in *inputs) deliver(frame []byte) error {
	f, err := guest.ParseInput(frame)
	if err != nil || f.VCPU >= len(in.rings) {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	r := &in.rings[f.VCPU]
	if r.n == maxInputs {
		return errRing
	}
	r.data = append(r.data, frame...)
	r.n++
	return nil
}

// take gives the oldest packet to a vCPU to put, if there is one.
func (in *inputs) take(vcpu int, put func(frame []byte) error) (taken bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	r := &in.rings[vcpu]
	if r.n == 0 {
		return false, nil
	}
	if err := put(r.data[:guest.FrameSize]); err != nil {
		return false, err
	}
	r.data = r.data[:copy(r.data, r.data[guest.FrameSize:])]
	r.n--
	return true, nil
}

func (in *inputs) entry() vmstate.Entry {
	return vmstate.Entry{Name: "lockstep-input", Version: 1, MinVersion: 1}
}

// VMState names the packets. (A vmstate.Device.)
func (in *inputs) VMState(f *vmstate.Fields) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range in.rings {
		r := &in.rings[i]
		f.Uint32(fmt.Sprintf("n%d", i), &r.n)
		f.Bytes(fmt.Sprintf("data%d", i), vmstate.Resize(f, &r.data, uint64(r.n)*guest.FrameSize, maxInputs*guest.FrameSize))
	}
}
