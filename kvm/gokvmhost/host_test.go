//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/kvm/internal/fake"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func TestAMachineOfGokvmConformsToWhatASessionReliesOn(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for i, vcpus := range []int{2, 1} {
		t.Run(fmt.Sprintf("%d vCPUs", vcpus), func(t *testing.T) {
			require.Sample(t, i, 2)
			colotest.TestVM(t, func(t *testing.T) colotest.Host {
				f := newFlat(t, guest.Params{VCPUs: vcpus, Pages: 64, Touch: 4, Seed: 1}, gokvmhost.Config{
					Disk: fake.NewDisk(1 << 20), Uplink: fake.Nowhere{}, MAC: [6]byte{2, 0, 0, 0, 0, 1},
				})
				f.start()
				return colotest.Host{VM: f.Host, Log: f.Host, Blocks: f.Blocks(), Register: f.Register}
			})
		})
	}
}

// model checks the frames of all vCPUs against an independent computation.
func (f *flat) model() {
	f.t.Helper()
	for v, frames := range f.device.frames {
		model, err := guest.NewModel(f.params, v)
		must(f.t, err)
		for i, got := range frames {
			if n, h := model.Next(got.T); got.N != n || got.H != h {
				f.t.Fatalf("vCPU %d: frame %d is %+v, model says round %d, hash %#x", v, i, got, n, h)
			}
		}
	}
}

func (f *flat) save() []byte { f.t.Helper(); return saved(f.t, &f.reg) }

func (f *flat) load(state []byte) { f.t.Helper(); reload(f.t, &f.reg, state) }

// saved returns the state of a registry's devices.
func saved(t *testing.T, reg *vmstate.Registry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	must(t, reg.SaveDevices(w))
	vmstate.PutEOF(w)
	must(t, w.Flush())
	return b.Bytes()
}

// reload puts what saved has returned into a registry's devices.
func reload(t *testing.T, reg *vmstate.Registry, state []byte) {
	t.Helper()
	reg.NewSession()
	must(t, reg.LoadDevices(state, nil))
	must(t, reg.Commit())
}

func (f *flat) dirty() ram.Bitmap {
	f.t.Helper()
	m := ram.NewBitmap(len(f.mem) / kvm.PageSize)
	must(f.t, f.VM().ReadDirty(kvm.RAMBlock, m))
	return m
}

// goOn lets every vCPU emit n more frames.
func (f *flat) goOn(n uint64) {
	f.t.Helper()
	must(f.t, f.Resume(f.t.Context()))
	f.await(f.rounds(0) + n)
	must(f.t, f.Pause(f.t.Context()))
}

func flatConfig() gokvmhost.Config {
	return gokvmhost.Config{Disk: fake.NewDisk(1 << 20), Uplink: fake.Nowhere{}, MAC: [6]byte{2, 0, 0, 0, 0, 1}}
}

// Two machines take turns; what moves the guest's memory from one to the other is
// the dirty log of the one that ran.
func TestTheFlatProgramGoesThrough30Generations(t *testing.T) {
	for _, vcpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d vCPUs", vcpus), func(t *testing.T) {
			p := guest.Params{VCPUs: vcpus, Pages: 128, Touch: 8, Seed: 7}
			here, there := newFlat(t, p, flatConfig()), newFlat(t, p, flatConfig())
			for _, f := range []*flat{here, there} {
				must(t, f.VM().StartDirtyLog())
				f.dirty()
				f.start()
			}
			for g := range 30 {
				here.goOn(20)
				state := here.save()
				for i := range here.dirty().All() {
					at := i * kvm.PageSize
					copy(there.mem[at:at+kvm.PageSize], here.mem[at:])
				}
				if !bytes.Equal(here.mem, there.mem) {
					t.Fatal("generation", g, "has another memory")
				}
				there.load(state)
				there.dirty()
				if !bytes.Equal(here.mem, there.mem) {
					t.Fatal("loading generation", g, "has changed memory")
				}
				there.device.frames = here.device.frames
				here, there = there, here
			}
			here.goOn(20)
			here.model()
		})
	}
}

// A Host that was made without gokvm takes a guest of gokvm's, and gives it back.
func TestAGuestOfGokvmsGoesOnInAHostWithoutIt(t *testing.T) {
	p := guest.Params{VCPUs: 2, Pages: 128, Touch: 8, Seed: 11}
	here, there := newFlat(t, p, flatConfig()), createFlat(t, p, flatConfig())
	for _, f := range []*flat{here, there} {
		must(t, f.VM().StartDirtyLog())
		f.dirty()
		f.start()
	}
	copy(there.mem, here.mem)
	for range 6 {
		here.goOn(20)
		state := here.save()
		for i := range here.dirty().All() {
			at := i * kvm.PageSize
			copy(there.mem[at:at+kvm.PageSize], here.mem[at:])
		}
		there.load(state)
		there.dirty()
		there.device.frames = here.device.frames
		here, there = there, here
	}
	here.goOn(20)
	here.model()
}

// However large the guest is: what it costs is what comes.
func TestAHostForAGuestFromElsewhereTouchesNoMemory(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for _, size := range []uint64{256 << 20, 3 << 30} {
		h, err := gokvmhost.Create(gokvmhost.MachineConfig{Memory: size}, flatConfig())
		must(t, err)
		var reg vmstate.Registry
		must(t, h.Register(&reg))
		mem := h.Blocks()[0].Host
		if uint64(len(mem)) != size {
			t.Errorf("%d bytes of %d", len(mem), size)
		}
		if n, err := mapping.Resident(mem); err != nil || n != 0 {
			t.Errorf("%d pages of %d bytes of memory are there: %v", n, size, err)
		}
		must(t, h.Close())
	}
}

func TestTheFlatProgramIsRolledBack20Times(t *testing.T) {
	for _, vcpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d vCPUs", vcpus), func(t *testing.T) {
			f := newFlat(t, guest.Params{VCPUs: vcpus, Pages: 128, Touch: 8, Seed: 9}, flatConfig())
			must(t, f.VM().StartDirtyLog())
			f.start()
			f.goOn(50)
			state := f.save()
			f.dirty()
			shadow := bytes.Clone(f.mem)
			frames := slices.Clone(f.device.frames)
			for i := range 20 {
				f.goOn(uint64(1 + i))
				f.model()
				for i := range f.dirty().All() {
					at := i * kvm.PageSize
					copy(f.mem[at:at+kvm.PageSize], shadow[at:])
				}
				f.load(state)
				f.dirty()
				if !bytes.Equal(f.mem, shadow) {
					t.Fatal("roll-back", i, "has another memory")
				}
				copy(f.device.frames, frames)
			}
			f.goOn(50)
			f.model()
		})
	}
}

func TestANewMachinesMemoryIsZero(t *testing.T) {
	m := newMachine(t, gokvmhost.MachineConfig{Memory: 64 << 20})
	h, err := gokvmhost.Attach(m, gokvmhost.Config{})
	must(t, err)
	defer h.Close()
	mem := h.Blocks()[0].Host
	if len(mem) != 64<<20 || !bytes.Equal(mem, make([]byte, len(mem))) {
		t.Error(len(mem), "bytes, or not all zero")
	}
	if n := len(h.VM().VCPUs()); n != 1 {
		t.Error(n, "vCPUs")
	}
}

func TestAMachineThatCannotBeIsRefused(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for _, cfg := range []gokvmhost.MachineConfig{
		{}, {Memory: 1 << 20}, {Memory: 64<<20 + 1}, {Memory: 4 << 30}, {VCPUs: -1, Memory: 64 << 20}, {VCPUs: 65, Memory: 64 << 20},
	} {
		if m, err := gokvmhost.New(cfg); err == nil {
			gokvmhost.CloseMachine(m)
			t.Errorf("%+v is made", cfg)
		}
	}
}

// Many machines, while the collector runs: gokvm's own way would use a descriptor
// that was closed, and let the kernel write to a stack that was freed.
func TestMachinesAreMadeWhileTheCollectorRuns(t *testing.T) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.Gosched()
				_ = make([]byte, 1<<20)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	for range 5 {
		newMachine(t, gokvmhost.MachineConfig{VCPUs: 2, Memory: 32 << 20})
	}
}

func TestTheDisksFileThatTheMachineHasIsUsed(t *testing.T) {
	m := newMachine(t, gokvmhost.MachineConfig{Memory: 32 << 20})
	name := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(name, make([]byte, 1<<20), 0o600))
	must(t, m.AddDisk(name)) // starts a goroutine, which must end
	h, err := gokvmhost.Attach(m, gokvmhost.Config{})
	must(t, err)
	defer h.Close()
	f := &flat{Host: h, t: t}
	must(t, h.Register(&f.reg))
	if !bytes.Contains(f.save(), []byte("gokvm/virtio-blk")) {
		t.Error("there is no disk")
	}
}

func TestAHostIsPausedBeforeItIsSaved(t *testing.T) {
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, flatConfig())
	state := f.save()
	f.start()
	must(t, f.Resume(t.Context()))
	f.await(1)
	if err := f.reg.SaveDevices(qemufile.NewWriter(io.Discard)); err == nil {
		t.Error("a running guest is saved")
	}
	if err := f.Close(); !errors.Is(err, gokvmhost.ErrRunning) {
		t.Error("a running Host is closed:", err)
	}
	if err := f.Run(t.Context()); !errors.Is(err, gokvmhost.ErrRunning) {
		t.Error("Run runs twice:", err)
	}
	must(t, f.Pause(t.Context()))
	f.load(state)
	f.halt()
	must(t, f.Close())
	must(t, f.Close())
	if err := f.Run(t.Context()); !errors.Is(err, gokvmhost.ErrClosed) {
		t.Error("a closed Host runs:", err)
	}
}

func TestWhatAMachineDoesNotHaveIsSaidSo(t *testing.T) {
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, gokvmhost.Config{})
	if err := f.ReceivePacket(make([]byte, 60)); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := gokvmhost.Attach(f.machine, gokvmhost.Config{DirtyRing: 1024}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	ports := func(uint16, bool, []byte) (bool, error) { return false, nil }
	if _, err := gokvmhost.Attach(f.machine, gokvmhost.Config{OtherPorts: ports}); err == nil || !strings.Contains(err.Error(), "AddDevice") {
		t.Error(err)
	}
	full := newFlat(t, guest.Params{Pages: 16, Touch: 1}, flatConfig())
	if err := full.ReceivePacket(make([]byte, 13)); !errors.Is(err, gokvmhost.ErrFrame) {
		t.Error(err)
	}
	// The sections of a guest with a disk do not fit one without.
	f.reg.NewSession()
	if err := f.reg.LoadDevices(full.save(), nil); !errors.Is(err, vmstate.ErrUnknownSection) && !errors.Is(err, vmstate.ErrValue) {
		t.Error(err)
	}
}
