//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// testNIC returns a nic whose guest's memory holds one frame, at address 0.
func testNIC(out sender, frame []byte) *nic {
	mem := binary.LittleEndian.AppendUint32(nil, uint32(len(frame)))
	return &nic{out: out, in: newInputs(1), mem: append(mem, frame...), ports: make([]port, 1)}
}

// status reads PortStatus, as the guest does.
func status(t *testing.T, n *nic) byte {
	t.Helper()
	io := &kvm.IO{In: true, Port: guest.PortStatus, Size: 1, Count: 1, Data: []byte{0xff}}
	if err := n.access(0, io); err != nil {
		t.Fatal(err)
	}
	return io.Data[0]
}

func TestAFrameThatFindsTheBufferFullIsPartOfTheGuest(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{Limit: 1}) // as little as possible
	if err := b.Mark(0); err != nil {
		t.Fatal(err)
	}
	filled := 0
	for b.WritePacket(make([]byte, 4096)) == nil {
		filled++
	}
	for b.WritePacket([]byte("filler")) == nil {
		filled++
	}
	frame := []byte("the frame that waits")
	n := testNIC(b.WritePacket, frame)
	emit := &kvm.IO{Port: guest.PortEmit, Size: 4, Count: 1, Data: make([]byte, 4)}
	if err := n.access(0, emit); err != nil {
		t.Fatal(err)
	}
	if status(t, n) != 0 {
		t.Error("ready with a frame that waits")
	}

	// A checkpoint carries it to the other side's nic.
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	entry := vmstate.Entry{Name: "nic", Version: 1, MinVersion: 1}
	var save, load vmstate.Registry
	other := testNIC(b.WritePacket, nil)
	if err := errors.Join(save.Register(entry, n), load.Register(entry, other)); err != nil {
		t.Fatal(err)
	}
	if err := save.SaveDevices(w); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(load.Load(qemufile.NewReader(&stream), nil), load.Commit()); err != nil {
		t.Fatal(err)
	}
	if p := other.ports[0]; !bytes.Equal(p.pending[:p.size], frame) {
		t.Errorf("the other nic has %q", p.pending[:p.size])
	}

	// When there is room it leaves, once, and the guest may send on.
	var left [][]byte
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- b.Run(ctx, packetFunc(func(p []byte) error {
			left = append(left, bytes.Clone(p))
			return nil
		}))
	}()
	if err := b.Failover(); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); status(t, n) == 0; {
		if time.Since(begin) > time.Minute {
			t.Fatal("never ready")
		}
	}
	for b.Stats().Queued > 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if len(left) != filled+1 || !bytes.Equal(left[filled], frame) {
		t.Errorf("%d packets left, want %d and the one that waited", len(left), filled)
	}
}

type packetFunc func([]byte) error

func (f packetFunc) WritePacket(p []byte) error { return f(p) }

func TestAVCPUThatWaitsToSendDoesNotHoldUpAPause(t *testing.T) {
	n := testNIC(filter.NewBuffer(filter.BufferConfig{}).WritePacket, []byte("frame"))
	n.ports[0].due = time.Now().Add(time.Hour)
	held := make(chan struct{})
	go func() {
		defer close(held)
		time.Sleep(time.Millisecond)
		n.hold()
		n.hold() // pausing a paused guest is no error
	}()
	if status(t, n) != 0 {
		t.Error("ready an hour early")
	}
	<-held
	n.open()
	n.ports[0].due = time.Now()
	if status(t, n) != guest.StatusReady {
		t.Error("not ready when due")
	}
}

func TestAPortThatDoesNotExistEndsTheGuest(t *testing.T) {
	n := testNIC(filter.NewBuffer(filter.BufferConfig{}).WritePacket, []byte("frame"))
	for _, io := range []*kvm.IO{
		{In: true, Port: 0x60, Size: 1, Count: 1, Data: make([]byte, 1)},
		{In: true, Port: guest.PortStatus, Size: 1, Count: 2, Data: make([]byte, 2)},
		{Port: guest.PortEmit, Size: 2, Count: 1, Data: make([]byte, 2)},
		{Port: guest.PortEmit, Size: 4, Count: 1, Data: []byte{0, 0, 0, 0xff}},
	} {
		if n.access(0, io) == nil {
			t.Errorf("%+v was accepted", io)
		}
	}
}

// marks records what a device says to have written.
type marks [][2]uint64

func (m *marks) MarkDirty(gpa, n uint64) { *m = append(*m, [2]uint64{gpa, n}) }

func TestAVCPUThatMaySendIsGivenItsInput(t *testing.T) {
	mem := make([]byte, guest.RingBase)
	written := new(marks)
	n := &nic{in: newInputs(2), mem: mem, vm: written, ports: make([]port, 2)}
	frame := guest.Input{VCPU: 0, M: 1, V: 2}.AppendFrame(nil)
	if err := n.in.deliver(frame); err != nil {
		t.Fatal(err)
	}
	if got := status(t, n); got != guest.StatusReady|guest.StatusInput {
		t.Errorf("status %#x", got)
	}
	if len(*written) != 1 {
		t.Fatalf("%d writes were marked", len(*written))
	}
	at := (*written)[0]
	if !bytes.Contains(mem[at[0]:at[0]+at[1]], frame) {
		t.Error("the input is not where it was marked")
	}
	if got := status(t, n); got != guest.StatusReady {
		t.Errorf("status %#x without input", got)
	}
	n.in.deliver(frame)
	n.ports[0].pending, n.ports[0].size = frame, uint32(len(frame))
	n.out = func([]byte) error { return proxy.ErrFull }
	if got := status(t, n); got != 0 {
		t.Errorf("status %#x with a frame that waits: an answer would find no place", got)
	}
}

// A thread that comes back from the guest is to find a place to run Go code, however busy
// the others are; when the vCPUs have ended, the program has as many places as before.
func TestWhileVCPUsRunThereIsAPlaceForEachOfTheirThreads(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	const vcpus = 2
	p := guest.Params{VCPUs: vcpus, Pages: 8, Touch: 1}
	m, err := newKVMMachine(trial.SideConfig{Guest: p, Memory: p.MemSize()}, false, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.(*kvmMachine).vm.Close()
	before := runtime.GOMAXPROCS(0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	for limit := time.Now().Add(time.Minute); runtime.GOMAXPROCS(0) != before+vcpus; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Errorf("%d places for %d vCPUs, of %d before they ran", runtime.GOMAXPROCS(0), vcpus, before)
			break
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d places when they have ended, %d before", n, before)
	}
}
