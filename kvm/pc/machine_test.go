//go:build linux && amd64

package pc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/fake"
	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// Package protect takes a Machine as it is.
var _ protect.Guest = (*pc.Machine)(nil)

func TestAMachineConformsToWhatASessionReliesOn(t *testing.T) {
	colotest.TestVM(t, func(t *testing.T) colotest.Host {
		f := newFlat(t, guest.Params{VCPUs: 2, Pages: 64, Touch: 4, Seed: 1}, devices())
		f.start()
		return colotest.Host{VM: f.Machine, Log: f.Machine, Blocks: f.Blocks(), Register: f.Register}
	})
}

// Two machines take turns; what moves the guest's memory from one to the other is the
// dirty log of the one that ran.
func TestAGuestGoesThrough10Generations(t *testing.T) {
	p := guest.Params{VCPUs: 2, Pages: 128, Touch: 8, Seed: 7}
	here, there := newFlat(t, p, devices()), newFlat(t, p, devices())
	for _, f := range []*flat{here, there} {
		must(t, f.VM().StartDirtyLog())
		f.dirty()
		f.start()
	}
	for g := range 10 {
		here.goOn(10)
		state := here.save()
		for i := range here.dirty().All() {
			at := i * kvm.PageSize
			copy(there.mem[at:at+kvm.PageSize], here.mem[at:])
		}
		must(t, there.load(state))
		there.dirty()
		if !bytes.Equal(here.mem, there.mem) {
			t.Fatal("generation", g, "has another memory")
		}
		there.frames = slices.Clone(here.frames)
		here, there = there, here
	}
	here.goOn(10)
	here.model()
}

func TestEveryDeviceHasASectionOfItsOwn(t *testing.T) {
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, devices())
	state := f.save()
	doc, err := os.ReadFile("doc.go")
	must(t, err)
	all := len(regexp.MustCompile(`pc/[a-z]+[a-z-]*`).FindAll(state, -1))
	for _, name := range []string{"pc/pci", "pc/serial", "pc/cmos", "pc/pm", "pc/virtio-blk", "pc/virtio-net", "pc/virtio-rng"} {
		if !bytes.Contains(doc, []byte(" "+name)) {
			t.Errorf("the comment of the package does not name %s", name)
		}
		want := 1
		if strings.HasPrefix(name, "pc/virtio") && name != "pc/virtio-rng" {
			want = 2
		}
		if n := bytes.Count(state, append([]byte{byte(len(name))}, name...)); n != want {
			t.Errorf("%d sections %s, want %d", n, name, want)
		}
		all -= want
	}
	if all != 0 {
		t.Errorf("%d sections that this test does not name", all)
	}
	// A machine with other devices does not take it.
	one := devices()
	one.Disks = one.Disks[:1]
	other := newFlat(t, guest.Params{Pages: 16, Touch: 1}, one)
	if err := other.load(state); !errors.Is(err, vmstate.ErrUnknownSection) && !errors.Is(err, vmstate.ErrValue) {
		t.Error("a machine with one disk less:", err)
	}
	swapped := devices()
	swapped.NICs[0].MAC[5] = 9
	if err := newFlat(t, guest.Params{Pages: 16, Touch: 1}, swapped).load(state); !errors.Is(err, vmstate.ErrValue) {
		t.Error("a machine with another address:", err)
	}
	var reg vmstate.Registry
	must(t, f.RegisterAs(&reg, "mine/"))
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	must(t, reg.SaveDevices(w))
	must(t, w.Flush())
	if !bytes.Contains(b.Bytes(), []byte("mine/virtio-blk")) || bytes.Contains(b.Bytes(), []byte("pc/")) {
		t.Error("the prefix is not the one given")
	}
}

func TestAMachineIsSavedWhileItIsPaused(t *testing.T) {
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, devices())
	f.start()
	f.goOn(1)
	must(t, f.Resume(t.Context()))
	if err := f.reg.SaveDevices(qemufile.NewWriter(io.Discard)); err == nil {
		t.Error("a running guest is saved")
	}
	if err := f.LoadLinux(bytes.NewReader(nil), nil, ""); !errors.Is(err, pc.ErrRunning) {
		t.Error("a kernel is loaded into a running guest:", err)
	}
	if err := f.Close(); !errors.Is(err, pc.ErrRunning) {
		t.Error("a running Machine is closed:", err)
	}
	if err := f.Run(t.Context()); !errors.Is(err, pc.ErrRunning) {
		t.Error("Run runs twice:", err)
	}
	f.halt()
	must(t, f.Close())
	must(t, f.Close())
	if err := f.Run(t.Context()); !errors.Is(err, pc.ErrClosed) {
		t.Error("a closed Machine runs:", err)
	}
	if err := f.Cards()[0].ReceivePacket(make([]byte, 60)); !errors.Is(err, pc.ErrClosed) {
		t.Error("a closed Machine receives:", err)
	}
	if _, err := f.Input([]byte("x")); !errors.Is(err, pc.ErrClosed) {
		t.Error("a closed Machine is typed to:", err)
	}
}

// Of a pair one host has an uplink that takes headers, and the other has not: only the
// guest that has never seen an offload goes both ways.
func TestAGuestWithOffloadsStaysWhereThereAreHeaders(t *testing.T) {
	p := guest.Params{Pages: 16, Touch: 1}
	with := devices()
	with.NICs[0].VNetHdr, with.NICs[1].VNetHdr = 12, 10
	a, b, without := newFlat(t, p, with), newFlat(t, p, with), newFlat(t, p, devices())
	state := a.save()
	must(t, b.load(state))
	if err := without.load(state); !errors.Is(err, vmstate.ErrValue) {
		t.Error("offloads that the host cannot offer are taken:", err)
	}
	must(t, b.load(without.save()))
	must(t, without.load(b.save()))
	card := a.Cards()[0]
	must(t, card.ReceivePacket(make([]byte, 12+60)))
	if err := card.ReceivePacket(make([]byte, 12+13)); !errors.Is(err, pc.ErrFrame) {
		t.Error("13 bytes behind a header are a frame:", err)
	}
	bad := make([]byte, 12+60)
	bad[0], bad[7] = 1, 1 // a checksum of what begins at byte 256
	if err := card.ReceivePacket(bad); !errors.Is(err, pc.ErrFrame) || card.Dropped() != 1 {
		t.Error("a header that does not fit is taken:", err)
	}
}

// source is an uplink that brings frames until it is told to fail.
type source struct {
	fake.Nowhere
	frames chan []byte
	err    error
}

func (s source) Receive(ctx context.Context, deliver func([]byte) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f, ok := <-s.frames:
			if !ok {
				return s.err
			}
			deliver(f)
		}
	}
}

func TestASourceThatEndsWithoutAnErrorEndsTheRunWithOne(t *testing.T) {
	s := source{frames: make(chan []byte)}
	d := devices()
	d.NICs[1].Uplink = s
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, d)
	f.start()
	close(s.frames)
	if err := <-f.done; !errors.Is(err, pc.ErrSource) {
		t.Error("Run:", err)
	}
	f.stop = nil
}

func TestASourcesFramesReachItsCardAndItsErrorEndsTheRun(t *testing.T) {
	broken := errors.New("broken")
	s := source{frames: make(chan []byte), err: broken}
	d := devices()
	d.NICs[1].Uplink = s
	f := newFlat(t, guest.Params{Pages: 16, Touch: 1}, d)
	f.start()
	f.goOn(1)
	s.frames <- make([]byte, 13) // is none: it is not taken
	s.frames <- bytes.Repeat([]byte("frame"), 20)
	s.frames <- make([]byte, 13) // the one before has been taken
	state := f.save()
	if n := bytes.Count(state, bytes.Repeat([]byte("frame"), 20)); n != 1 {
		t.Errorf("%d frames wait in the cards, want 1", n)
	}
	close(s.frames)
	if err := <-f.done; !errors.Is(err, broken) {
		t.Error("Run:", err)
	}
	f.stop = nil
}

func TestWhatCannotBeAMachineIsRefused(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for name, cfg := range map[string]pc.Config{
		"no memory":           {},
		"too little memory":   {Memory: 64 << 10},
		"no uplink":           {Memory: 1 << 20, Devices: pc.Devices{NICs: make([]pc.NIC, 1)}},
		"odd headers":         {Memory: 1 << 20, Devices: pc.Devices{NICs: []pc.NIC{{Uplink: fake.Nowhere{}, VNetHdr: 11}}}},
		"no storage":          {Memory: 1 << 20, Devices: pc.Devices{Disks: make([]pc.Disk, 1)}},
		"no such slot":        {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 32}}}}},
		"no slot":             {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Interrupt: 9}}}}},
		"the board's ports":   {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 1, Ports: 0x6100}}}}},
		"odd ports":           {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 1, Ports: 0x6280}}}}},
		"the console's line":  {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 1, Interrupt: 4}}}}},
		"another disk's line": {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 1, Interrupt: 9}}, {Storage: newDisk(), Place: pc.Place{Slot: 2, Interrupt: 9}}}}},
		"two in a slot":       {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 4}}, {Storage: newDisk(), Place: pc.Place{Slot: 4}}}}},
		"too many at once":    {Memory: 1 << 20, Devices: pc.Devices{Disks: []pc.Disk{{Storage: newDisk(), Requests: 65}}}},
		"more than there are": {Memory: 1 << 20, Devices: pc.Devices{Disks: slices.Repeat([]pc.Disk{{Storage: newDisk()}}, 32)}},
	} {
		if m, err := pc.Create(cfg); err == nil {
			m.Close()
			t.Errorf("%s: it is made", name)
		}
	}
}

// kernel returns the least that is taken for a kernel: its only instruction, at the 32-bit
// entry, writes a port.
func kernel(code []byte) []byte {
	k := make([]byte, 1024+4096)
	le := binary.LittleEndian
	k[0x1f1] = 1
	le.PutUint32(k[0x1f4:], 4096/16)
	le.PutUint16(k[0x1fe:], 0xaa55)
	k[0x201] = 0x66
	copy(k[0x202:], "HdrS")
	le.PutUint16(k[0x206:], 0x20f)
	k[0x211] = 1
	le.PutUint32(k[0x22c:], 0x7fffffff)
	le.PutUint32(k[0x238:], 2047)
	le.PutUint64(k[0x258:], 0x1000000)
	le.PutUint32(k[0x260:], 0x10000)
	copy(k[1024:], code)
	return k
}

// What the kernel finds at its entry is looked at in the guest's memory and registers.
func TestAKernelIsEnteredAsTheBootProtocolSays(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := pc.Create(pc.Config{VCPUs: 2, Memory: 32 << 20, Devices: devices()})
	must(t, err)
	defer m.Close()
	disk := bytes.Repeat([]byte("disk"), 1000)
	must(t, m.LoadLinux(bytes.NewReader(kernel([]byte{0xf4})), bytes.NewReader(disk), "console=ttyS0"))

	v := m.VM().VCPUs()[0]
	r, err := v.Regs()
	must(t, err)
	s, err := v.Sregs()
	must(t, err)
	if r.RIP != 0x100000 || r.RFLAGS != 2 || s.CR0&1 == 0 || s.CR0>>31 != 0 || s.CS.Selector != 0x10 || s.CS.DB != 1 || s.SS.Selector != 0x18 {
		t.Errorf("entered at %#x with flags %#x, CR0 %#x, CS %+v, SS %+v", r.RIP, r.RFLAGS, s.CR0, s.CS, s.SS)
	}
	mem, le := m.Blocks()[0].Host, binary.LittleEndian
	if mem[r.RIP] != 0xf4 {
		t.Errorf("%#x is at the entry", mem[r.RIP])
	}
	// The segments in the table are those in the registers.
	for selector, access := range map[uint64]byte{0x10: 0x9b, 0x18: 0x93} {
		if d := le.Uint64(mem[s.GDT.Base+selector:]); byte(d>>40) != access || d&0xffff != 0xffff || d>>48&0xff != 0xcf {
			t.Errorf("segment %#x is %#x", selector, d)
		}
	}
	params := mem[r.RSI:][:4096]
	if string(params[0x202:][:4]) != "HdrS" || le.Uint16(params[0x206:]) != 0x20f || params[0x210] != 0xff {
		t.Errorf("the header is not in the parameters: % x", params[0x1f0:0x220])
	}
	if line := mem[le.Uint32(params[0x228:]):]; !bytes.HasPrefix(line, []byte("console=ttyS0\x00")) {
		t.Errorf("the command line is %q", line[:20])
	}
	if at, n := le.Uint32(params[0x218:]), le.Uint32(params[0x21c:]); !bytes.Equal(mem[at:][:n], disk) {
		t.Errorf("the initial RAM disk is not at %#x", at)
	}
	if rsdp := le.Uint64(params[0x70:]); !bytes.HasPrefix(mem[rsdp:], []byte("RSD PTR ")) {
		t.Errorf("the ACPI tables are not at %#x", rsdp)
	}
	var usable uint64
	for i := range int(params[0x1e8]) {
		e := params[0x2d0+20*i:]
		if le.Uint32(e[16:]) == 1 {
			usable += le.Uint64(e[8:])
		}
	}
	if usable > 32<<20 || usable < 31<<20 {
		t.Errorf("%d bytes are usable", usable)
	}
	if err := m.LoadLinux(bytes.NewReader(kernel(nil)[:900]), nil, ""); !errors.Is(err, pc.ErrKernel) {
		t.Error("a kernel that is cut off:", err)
	}
}

func TestAPlaceIsWhereItWasSaidOrTheNextThatIsFree(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := pc.Create(pc.Config{Memory: 1 << 20, Devices: pc.Devices{
		NICs:   []pc.NIC{{Uplink: fake.Nowhere{}}, {Uplink: fake.Nowhere{}, Place: pc.Place{Slot: 1, Interrupt: 10}}},
		Disks:  []pc.Disk{{Storage: newDisk(), Place: pc.Place{Slot: 9, Ports: 0x6300}}, {Storage: newDisk()}},
		Random: pc.Random{Source: rand.Reader},
	}})
	must(t, err)
	defer m.Close()
	if want, got := []pc.Place{{3, 0x6400, 9}, {1, 0x6200, 10}, {9, 0x6300, 5}, {4, 0x6500, 7}, {5, 0x6600, 3}}, m.Places(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
