//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func TestStructsHaveTheKernelsSizes(t *testing.T) {
	for name, x := range map[string]struct{ got, want uintptr }{
		"kvm_regs":         {unsafe.Sizeof(gokvm.Regs{}), 144},
		"kvm_sregs":        {unsafe.Sizeof(gokvm.Sregs{}), 312},
		"kvm_sregs2":       {unsafe.Sizeof(gokvm.SRegs2{}), 320},
		"kvm_xcrs":         {unsafe.Sizeof(gokvm.XCRS{}), 392},
		"kvm_debugregs":    {unsafe.Sizeof(gokvm.DebugRegs{}), 128},
		"kvm_lapic_state":  {unsafe.Sizeof(gokvm.LAPICState{}), 1024},
		"kvm_mp_state":     {unsafe.Sizeof(gokvm.MPState{}), 4},
		"kvm_vcpu_events":  {unsafe.Sizeof(gokvm.VCPUEvents{}), 64},
		"  payload":        {unsafe.Offsetof(gokvm.VCPUEvents{}.ExceptionPayload), 0x38},
		"kvm_cpuid_entry2": {unsafe.Sizeof(gokvm.CPUIDEntry2{}), 40},
		"kvm_msr_entry":    {unsafe.Sizeof(gokvm.MSREntry{}), 16},
		"kvm_cpuid2":       {unsafe.Offsetof(cpuidTable{}.entries), 8},
		"kvm_msrs":         {unsafe.Offsetof(msrTable{}.entries), 8},
		"kvm_irqchip":      {unsafe.Sizeof(gokvm.IRQChip{}), 520},
		"kvm_pit_state2":   {unsafe.Sizeof(gokvm.PITState2{}), 112},
		"kvm_clock_data":   {unsafe.Sizeof(gokvm.ClockData{}), 48},
		"kvm_dirty_log":    {unsafe.Sizeof(gokvm.DirtyLog{}), 16},
		"kvm_memory":       {unsafe.Sizeof(gokvm.UserspaceMemoryRegion{}), 32},
		"kvm_enable_cap":   {unsafe.Sizeof(enableCap{}), 104},
		"kvm_dirty_gfn":    {unsafe.Sizeof(ringEntry{}), 16},
		"kvm_run":          {unsafe.Offsetof(gokvm.RunData{}.Data), 32},
		"  mmio":           {unsafe.Offsetof(mmioExit{}.isWrite), 20},
		"  kvm_valid_regs": {unsafe.Sizeof(gokvm.RunData{}), syncAt},
		"kvm_sync_regs":    {unsafe.Sizeof(syncArea{}) - unsafe.Offsetof(syncArea{}.regs), 520},
	} {
		if x.got != x.want {
			t.Errorf("%s: %d, the kernel's is %d", name, x.got, x.want)
		}
	}
}

func TestAMissingCapabilityIsNamed(t *testing.T) {
	null, err := os.Open(os.DevNull) // knows no capability
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	_, err = ReadSystem(fd, fd)
	vm := &VM{fd: fd}
	for name, err := range map[string]error{
		"KVM_CAP_IMMEDIATE_EXIT": err,
		"KVM_CAP_DIRTY_LOG_RING": vm.enableRing(1024),
		"KVM_CAP_TSC_CONTROL":    (&VCPUState{sys: &System{}, tscKHz: 1, hasTSCKHz: 2000000}).checkTSCKHz(),
	} {
		var missing *CapabilityError
		if !errors.As(err, &missing) || missing.Name != name || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Attach(uintptr(fd), AttachConfig{KVM: fd}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error("attach:", err)
	}
}

// synthetic returns a state as a vCPU might have it, with a value of its own in
// every field, and the registry that carries it.
func synthetic(t testing.TB) (*VCPUState, *vmstate.Registry) {
	t.Helper()
	sys := &System{msrs: []uint32{0x10, 0x3b, 0x174, 0xc0000081, 0x6e0}, xsaveSize: xsaveMin, xcrs: true, sregs2: true, debugRegs: true}
	s := &VCPUState{sys: sys, apic: true, xsave: make([]byte, xsaveMin), hasTSCKHz: 2000000, tscKHz: 2000000, xsaveSize: xsaveMin}
	s.cpuid.n = 2
	s.cpuid.entries[0] = gokvm.CPUIDEntry2{Function: 0, Eax: 0xd, Ebx: 1, Ecx: 2, Edx: 3}
	s.cpuid.entries[1] = gokvm.CPUIDEntry2{Function: 0xd, Flags: 1, Eax: 7}
	s.mp.State = gokvm.MPStateHalted
	seed := byte(1)
	fill := func(p []byte) {
		for i := range p {
			seed = seed*5 + 3
			p[i] = seed
		}
	}
	fill(raw(&s.regs, 1))
	fill(raw(&s.sregs, 1))
	fill(s.xsave)
	fill(s.lapic.Regs[:])
	r := &s.sregs
	for _, g := range []*gokvm.Segment{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS, &r.TR, &r.LDT} {
		g.L = 0
	}
	r.CR0, r.CR4, r.CR8, r.EFER, r.Flags = cr0PE|cr0PG, cr4PAE, 5, eferLME|eferLMA, sregsFlags
	r.CS.L = 1
	s.xcrs.NrXRCS = 1
	s.xcrs.Registers[0].Value = 7
	s.debug = gokvm.DebugRegs{DB: [4]uint64{1, 2, 3, 4}, DR6: 0xffff0ff0, DR7: 0x400}
	s.msr.n = uint32(len(sys.msrs))
	for i, index := range sys.msrs {
		s.msr.entries[i] = gokvm.MSREntry{Index: index, Data: uint64(i)<<32 + 5}
	}
	s.events = gokvm.VCPUEvents{Flags: 0xd, SipiVector: 9, ExceptionPayload: 11, TripleFault: 1}
	s.events.E = gokvm.Exception{Inject: 1, Nr: 14, HadErrorCode: 1, ErrorCode: 6}
	s.events.I = gokvm.Interrupt{Inject: 1, Nr: 0x30, Soft: 1, Shadow: 2}
	s.events.N = gokvm.NMI{Inject: 1, Pending: 2, Masked: 3}
	s.events.S = gokvm.SMI{SMM: 0, Pening: 1, SMMInsideNMI: 1, LatchedInit: 1}
	reg := &vmstate.Registry{}
	if err := reg.Register(vmstate.Entry{Name: "kvm/vcpu", Version: 1, MinVersion: 1}, s); err != nil {
		t.Fatal(err)
	}
	return s, reg
}

func encode(t testing.TB, reg *vmstate.Registry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := reg.SaveDevices(w); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTheSectionOfAVCPUKeepsItsLayout(t *testing.T) {
	_, reg := synthetic(t)
	got := hex.Dump(encode(t, reg))
	path := filepath.Join("testdata", "vcpu-v1.hex")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("the section's bytes are not those of %s", path)
	}
}

func TestAStateIsTheSameOnTheOtherSide(t *testing.T) {
	from, reg := synthetic(t)
	to, toReg := synthetic(t)
	stream := encode(t, reg)
	*to = VCPUState{sys: to.sys, apic: true, xsave: make([]byte, xsaveMin), hasTSCKHz: to.hasTSCKHz}
	if err := toReg.LoadDevices(stream, nil); err != nil {
		t.Fatal(err)
	}
	if err := toReg.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encode(t, toReg), stream) {
		t.Error("what was loaded does not save as it came")
	}
	if to.regs != from.regs || to.sregs.CS != from.sregs.CS || to.events != from.events || to.msr != from.msr || to.cpuid != from.cpuid {
		t.Error("the states differ")
	}
}

func TestAStateThatKVMWouldRefuseIsRefusedWhileItIsDecoded(t *testing.T) {
	for why, spoil := range map[string]func(*VCPUState){
		"MP state":                     func(s *VCPUState) { s.mp.State = 9 },
		"no local APIC there":          func(s *VCPUState) { s.apic = false },
		"paging without protection":    func(s *VCPUState) { s.sregs.CR0 = cr0PG },
		"CR0 beyond 32 bits":           func(s *VCPUState) { s.sregs.CR0 |= 1 << 40 },
		"CR0.NW alone":                 func(s *VCPUState) { s.sregs.CR0 |= cr0NW },
		"CR8":                          func(s *VCPUState) { s.sregs.CR8 = 16 },
		"long mode without PAE":        func(s *VCPUState) { s.sregs.CR4 = 0 },
		"long mode not active":         func(s *VCPUState) { s.sregs.EFER = eferLME },
		"CS.L outside long mode":       func(s *VCPUState) { s.sregs.EFER = 0 },
		"flags of sregs2":              func(s *VCPUState) { s.sregs.Flags = 2 },
		"XSAVE area too small":         func(s *VCPUState) { s.xsaveSize = 100 },
		"XSAVE area too large":         func(s *VCPUState) { s.xsave, s.xsaveSize = make([]byte, 8192), 8192 },
		"DR7":                          func(s *VCPUState) { s.debug.DR7 = 1 << 32 },
		"flags of events":              func(s *VCPUState) { s.events.Flags = 0x80 },
		"exception twice":              func(s *VCPUState) { s.events.E.Pending = 1; s.events.Flags |= eventsPayload; s.flags |= eventsPayload },
		"no CPUID":                     func(s *VCPUState) { s.cpuid.n = 0 },
		"CPUID padding":                func(s *VCPUState) { s.cpuid.entries[1].Padding[2] = 1 },
		"no XCR0":                      func(s *VCPUState) { s.xcrs.NrXRCS = 0 },
		"XCR1":                         func(s *VCPUState) { s.xcrs.Registers[0].XRC = 1 },
		"XCR0 without FPU":             func(s *VCPUState) { s.xcrs.Registers[0].Value = 2 },
		"XCR0 beyond CPUID":            func(s *VCPUState) { s.xcrs.Registers[0].Value = 15 },
		"unknown MSR":                  func(s *VCPUState) { s.msr.entries[2].Index = 0x999 },
		"an MSR twice":                 func(s *VCPUState) { s.msr.entries[2].Index = s.msr.entries[3].Index },
		"MSR padding":                  func(s *VCPUState) { s.msr.entries[2].Padding = 1 },
		"TSC frequency":                func(s *VCPUState) { s.tscKHz = 1000000 },
		"nested virtualization, AMD":   func(s *VCPUState) { s.sregs.EFER |= 1 << 12 },
		"nested virtualization, Intel": func(s *VCPUState) { s.sregs.CR4 |= 1 << 13 },
	} {
		from, reg := synthetic(t)
		spoil(from)
		to, toReg := synthetic(t)
		before := *to
		if err := toReg.LoadDevices(encode(t, reg), nil); err == nil {
			t.Errorf("%s: accepted", why)
		}
		if to.regs != before.regs || to.sregs != before.sregs || to.msr != before.msr || to.cpuid.n != before.cpuid.n {
			t.Errorf("%s: the state was changed", why)
		}
	}
	from, reg := synthetic(t)
	from.msr.entries[2] = gokvm.MSREntry{Index: 0x999}
	_, toReg := synthetic(t)
	if err := toReg.LoadDevices(encode(t, reg), nil); err != nil {
		t.Error("an MSR that does not exist here and is 0:", err)
	}
}

// A VM that is not made to tell an exception's payload apart says that an exception is
// injected and pending when it is pending only: as after a page fault that the pause came
// between.
func TestAnExceptionThatIsPendingWithoutItsPayloadIsTaken(t *testing.T) {
	from, reg := synthetic(t)
	from.events.E.Inject, from.events.E.Pending = 1, 1
	to, toReg := synthetic(t)
	if err := toReg.LoadDevices(encode(t, reg), nil); err != nil {
		t.Fatal(err)
	}
	if err := toReg.Commit(); err != nil {
		t.Fatal(err)
	}
	if to.events.E != from.events.E {
		t.Errorf("%+v, was %+v", to.events.E, from.events.E)
	}
}

func TestEveryTruncationOfAStateIsRefused(t *testing.T) {
	_, reg := synthetic(t)
	stream := encode(t, reg)
	step := 1
	if testing.Short() {
		step = 7
	}
	for n := 0; n < len(stream); n += step {
		_, to := synthetic(t)
		if err := to.LoadDevices(stream[:n], nil); err == nil {
			t.Fatalf("%d of %d bytes were accepted", n, len(stream))
		}
	}
}

func FuzzVCPUState(f *testing.F) {
	_, reg := synthetic(f)
	f.Add(encode(f, reg))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, reg := synthetic(t)
		if reg.LoadDevices(stream, nil) != nil {
			return
		}
		if err := reg.Commit(); err != nil {
			t.Fatal(err)
		}
		once := encode(t, reg)
		_, again := synthetic(t)
		if err := again.LoadDevices(once, nil); err != nil {
			t.Fatal("what was accepted is refused when saved again:", err)
		}
		if err := again.Commit(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encode(t, again), once) {
			t.Fatal("saving is not stable")
		}
	})
}

func FuzzChipState(f *testing.F) {
	s := &ChipState{hasChips: true, hasPIT: true}
	reg := &vmstate.Registry{}
	if err := reg.Register(vmstate.Entry{Name: "kvm/chips", Version: 1, MinVersion: 1}, s); err != nil {
		f.Fatal(err)
	}
	f.Add(encode(f, reg))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if reg.LoadDevices(stream, nil) != nil {
			return
		}
		if err := reg.Commit(); err != nil {
			t.Fatal(err)
		}
		for i, c := range s.pit.Channels {
			if c.Count > pitCountMax {
				t.Fatalf("PIT channel %d counts from %d", i, c.Count)
			}
		}
	})
}

// musts returns a function that ends the test on an error, and returns the number beside it otherwise.
func musts(t testing.TB) func(n int, err error) int {
	return func(n int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}
