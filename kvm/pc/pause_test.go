//go:build linux && amd64

package pc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/device"
)

// A write that replication holds keeps a pause waiting, but not for longer than its
// context, and the guest is then not paused.
func TestAPauseWaitsForABusyDeviceAsLongAsItMay(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	h, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	background := context.Background()
	if err := h.Resume(background); err != nil {
		t.Fatal(err)
	}
	if !h.gate.Enter(background) {
		t.Fatal("a guest that runs keeps its devices out")
	}
	ctx, cancel := context.WithCancel(background)
	stopped := make(chan error)
	go func() { stopped <- h.Pause(ctx) }()
	for h.gate.TryEnter() { // until Pause has closed it
		h.gate.Leave()
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Error("Pause:", err)
	}
	if h.paused.Load() || !h.gate.TryEnter() {
		t.Error("the guest is stuck half way")
	}
	h.gate.Leave()
	h.gate.Leave()
	if err := h.Pause(background); err != nil {
		t.Error(err)
	}
	if h.gate.TryEnter() {
		t.Error("a paused guest's devices work")
	}
	// Pauses nest: one of two undone leaves the guest paused.
	if err := errors.Join(h.Pause(background), h.Resume(background)); err != nil {
		t.Error(err)
	}
	if !h.paused.Load() || h.gate.TryEnter() {
		t.Error("one Resume has undone two Pauses")
	}
	if err := h.Resume(background); err != nil {
		t.Error(err)
	}
	if h.paused.Load() || !h.gate.TryEnter() {
		t.Error("two Resumes have not undone two Pauses")
	}
	h.gate.Leave()
}

// drop is an uplink that takes everything.
type drop struct{}

func (drop) WritePacket([]byte) error { return nil }
func (drop) Room() <-chan struct{}    { return nil }

// A session may end after the Machine was closed, and undo its pause then: a frame that waits
// in the card must not be written to memory that is not there any more.
func TestAClosedMachineIsNotResumed(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := Create(Config{Memory: 1 << 20, Devices: Devices{NICs: []NIC{{Uplink: drop{}}}}})
	if err != nil {
		t.Fatal(err)
	}
	// The driver has a buffer ready: the queue is at 64 KiB, the buffer at 128 KiB.
	const (
		rings, buffer, length = 0x10000, 0x20000, 2048
		available             = rings + 16*device.QueueSize
		pfn, toWrite          = 8, 2
	)
	le := binary.LittleEndian
	le.PutUint64(m.memory[rings:], buffer)
	le.PutUint32(m.memory[rings+8:], length)
	le.PutUint16(m.memory[rings+12:], toWrite)
	le.PutUint16(m.memory[available+2:], 1)
	card := m.Cards()[0]
	err = errors.Join(card.net.Out(pfn, le.AppendUint32(nil, rings/kvm.PageSize)), card.ReceivePacket(make([]byte, 60)), m.Close())
	if err != nil {
		t.Fatal(err)
	}
	debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(false)
	defer func() {
		if r := recover(); r != nil {
			t.Error("memory of the closed Machine was touched:", r)
		}
	}()
	background := context.Background()
	for what, err := range map[string]error{
		"Resume":    m.Resume(background),
		"Pause":     m.Pause(background),
		"LoadLinux": m.LoadLinux(strings.NewReader(""), nil, ""),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Error(what, "of a closed Machine:", err)
		}
	}
	if m.gate.TryEnter() {
		t.Error("the devices of a closed Machine work")
	}
}

// A state may be committed when the Machine has been closed: its interrupt lines are not moved
// then, by a descriptor that may be another file's.
func TestAClosedMachineTakesNoState(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := Create(Config{Memory: 1 << 20, Devices: Devices{NICs: []NIC{{Uplink: drop{}}}}})
	if err != nil {
		t.Fatal(err)
	}
	card := section{m, "card", 0, m.Cards()[0].net}
	if err := errors.Join(card.PreSave(), card.PostLoad(1), m.Close()); err != nil {
		t.Fatal(err)
	}
	if err := card.PreSave(); !errors.Is(err, ErrClosed) {
		t.Error("a closed Machine is saved:", err)
	}
	if err := card.PostLoad(1); !errors.Is(err, ErrClosed) {
		t.Error("a closed Machine is loaded:", err)
	}
	if m.broken != nil {
		t.Error("a closed Machine has moved a line:", m.broken)
	}
}

// A Machine that is resumed while a call waits for its turn is not saved any more when the call has it.
func TestAMachineThatIsResumedMeanwhileIsNotSaved(t *testing.T) {
	i := newIdle(t, Devices{})
	i.turn <- struct{}{} // as a Resume has it
	saved, done := false, make(chan error)
	go func() { done <- i.whilePaused(func() error { saved = true; return nil }) }()
	for !waitsForTurn() {
		time.Sleep(time.Millisecond)
	}
	i.pauses = 0
	i.paused.Store(false)
	i.give()
	if err := <-done; !errors.Is(err, ErrRunning) || saved {
		t.Errorf("saved: %v, %v; want ErrRunning", saved, err)
	}
	i.pauses = 1
	i.paused.Store(true)
}

// waitsForTurn reports whether a goroutine waits in whilePaused.
func waitsForTurn() bool {
	all := make([]byte, 1<<20)
	all = all[:runtime.Stack(all, true)]
	for g := range bytes.SplitSeq(all, []byte("\n\n")) {
		if bytes.Contains(g, []byte("[chan send")) && bytes.Contains(g, []byte("whilePaused")) {
			return true
		}
	}
	return false
}

// A Machine whose devices cannot be made leaves no VM behind.
func TestAMachineThatCannotBeMadeLeavesNothing(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	open := func() (n int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		for _, fd := range list {
			if name, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(name, "kvm") {
				n++
			}
		}
		return n
	}
	before := open()
	for _, d := range []Devices{{NICs: []NIC{{}}}, {Disks: []Disk{{}}}, {Disks: []Disk{{Storage: blank{}, Place: Place{Slot: 40}}}}} {
		if m, err := Create(Config{Memory: 1 << 20, Devices: d}); err == nil {
			t.Error("a Machine is made of", d, m.Close())
		}
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors of KVM are open, were %d", after, before)
	}
}
