//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// states returns device states of a guest at different moments, and a VM that stands still and
// is to take them. Some differ in what a guest seldom changes.
func states(t *testing.T) (list [][]byte, v *VCPU, load func([]byte)) {
	t.Helper()
	a, _ := shooting(t, 1)
	reg := &vmstate.Registry{}
	if err := a.Register(reg); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for i := range 5 {
		from := a.VCPUs()[0]
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		was, err := from.Regs()
		must(err)
		for now := was; now == was; {
			must(a.Resume(ctx))
			time.Sleep(2 * time.Millisecond)
			must(a.Pause(ctx))
			now, err = from.Regs()
			must(err)
		}
		sregs, err := from.Sregs()
		must(err)
		switch i {
		case 1:
			sregs.FS.Base, sregs.CR2 = 0x1234000, 0x5678
		case 2:
			must(from.with(func(fd int) error {
				debug := gokvm.DebugRegs{DR6: 0xffff0ff0, DR7: 0x400}
				debug.DB[0] = 0x7777
				_, err := ioctl(fd, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&debug))
				return err
			}))
		case 3:
			must(from.with(func(fd int) error { return from.state.writeMSR(fd, 0x175, 0x99999000) })) // SYSENTER_ESP
		}
		must(from.SetSregs(sregs))
		list = append(list, bytes.Clone(encode(t, reg)))
	}

	b, _ := shooting(t, 1)
	to := &vmstate.Registry{}
	if err := b.Register(to); err != nil {
		t.Fatal(err)
	}
	to.NewSession()
	return list, b.vcpus[0], func(state []byte) {
		t.Helper()
		if err := errors.Join(to.LoadDevices(state, nil), to.Commit()); err != nil {
			t.Fatal(err)
		}
	}
}

// shows returns what KVM says that a vCPU has, but for what goes on by itself.
func shows(t *testing.T, v *VCPU) *VCPUState {
	t.Helper()
	s := v.staged.another()
	s.knows(v.state) // of KVM's own CPUID nothing is to be known
	if err := s.Save(v.fd); err != nil {
		t.Fatal(err)
	}
	for i := range s.msr.entries[:s.msr.n] {
		const adjust, hyperVRuntime, hyperVTime = 0x3b, 0x40000010, 0x40000020
		switch m := &s.msr.entries[i]; m.Index {
		case msrTSC, adjust, hyperVRuntime, hyperVTime:
			m.Data = 0
		}
	}
	return s
}

func sameState(t *testing.T, what string, got, want *VCPUState) {
	t.Helper()
	if got.mp != want.mp || got.sregs != want.sregs || got.regs != want.regs || got.xcrs != want.xcrs || got.debug != want.debug ||
		got.events != want.events || !bytes.Equal(got.xsave, want.xsave) || got.msr != want.msr {
		t.Errorf("%s: the vCPU has not all of the state that was loaded", what)
	}
}

// Whatever a vCPU was given before, it has all of what is loaded: state by state, as a new one
// has it.
func TestAVCPUThatStandsStillHasAllOfEachState(t *testing.T) {
	list, v, load := states(t)
	var want []*VCPUState
	for i, state := range list {
		v.held.ok = false // as if it had run
		v.staged.spare.told.ok = false
		load(state)
		want = append(want, shows(t, v))
		for j := range i {
			if want[i].regs == want[j].regs {
				t.Fatalf("states %d and %d are the same", i, j)
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		n := r.IntN(len(list))
		load(list[n])
		if !v.held.ok || !v.staged.spare.told.ok {
			t.Fatal("what the vCPUs have is not known")
		}
		sameState(t, "one after the other", shows(t, v), want[n])
	}
}

// A vCPU is not given again what it has: DR0 has been changed where nobody can have seen it.
func TestAVCPUThatStandsStillIsNotGivenWhatItHas(t *testing.T) {
	list, v, load := states(t)
	load(list[2])
	debug := v.staged.debug
	debug.DB[0] = 0x5000
	if _, err := ioctl(v.fd, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&debug)); err != nil {
		t.Fatal(err)
	}
	load(list[2])
	if got := shows(t, v).debug.DB[0]; got != 0x5000 {
		t.Errorf("DR0 is %#x: it was set though the vCPU had it", got)
	}
}

// What a vCPU had is not known any more when it has run, when its registers were set, when it
// was saved, or when somebody else has its descriptor.
func TestAVCPUIsGivenAllWhereItMayHaveChanged(t *testing.T) {
	list, v, load := states(t)
	ctx := context.Background()
	spoil := func() {
		t.Helper()
		debug := v.staged.debug
		debug.DB[0] = 0x5000
		if _, err := ioctl(v.fd, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&debug)); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func() error{
		"it has run": func() error {
			err := v.vm.Resume(ctx)
			for was, now := entered(v), entered(v); now == was && err == nil; now = entered(v) {
				err = errors.Join(v.vm.Pause(ctx), v.vm.Resume(ctx))
			}
			return errors.Join(err, v.vm.Pause(ctx))
		},
		"its registers were set": func() error {
			regs, err := v.Regs()
			return errors.Join(err, v.SetRegs(regs))
		},
		"it was saved":                     v.save,
		"somebody else has its descriptor": func() error { v.vm.ours = false; return nil },
	} {
		v.vm.ours = true
		load(list[2])
		if err := change(); err != nil {
			t.Fatal(err)
		}
		spoil()
		load(list[2])
		if got := shows(t, v).debug.DB[0]; got != 0x7777 {
			t.Errorf("%s: DR0 is %#x", name, got)
		}
	}
}

// What elapses is given to a vCPU again, though the vCPU was given the same before: here the place of the guest's
// clock, which has been changed where nobody can have seen it.
func TestAVCPUIsGivenAgainWhatElapses(t *testing.T) {
	const clock, at = 0x4b564d01, 5*PageSize | 1
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	i := slices.IndexFunc(s.msr.entries[:s.msr.n], func(m gokvm.MSREntry) bool { return m.Index == clock })
	if i < 0 {
		t.Skip("this KVM has no paravirtual clock")
	}
	s.msr.entries[i].Data = at
	for range 2 {
		if err := s.writeMSR(v.fd, clock, 0); err != nil {
			t.Fatal(err)
		}
		if err := v.restore(); err != nil {
			t.Fatal(err)
		}
		if got, _, err := s.readMSR(v.fd, clock); got != at {
			t.Errorf("the clock is at %#x, %v, want %#x", got, err, at)
		}
	}
}

// entered returns how often vCPUs have entered the guest.
func entered(v *VCPU) uint64 {
	n, _ := v.vm.stands()
	return n
}

// A state in which some bytes are others is taken or refused, and taken as a whole, just as by vCPUs
// of which nothing is known, whatever was loaded before.
func TestWhatAVCPUHasChangesNoVerdict(t *testing.T) {
	list, v, load := states(t)
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	reg.NewSession()
	r := rand.New(rand.NewPCG(3, 4))
	taken, refused := 0, 0
	for range 300 {
		good := list[r.IntN(len(list))]
		bad := bytes.Clone(good)
		for range 1 + r.IntN(2) {
			bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		}
		try := func(known bool) error {
			load(good)
			if !known {
				v.held.ok, v.staged.spare.told.ok = false, false
			}
			err := reg.LoadDevices(bad, nil)
			if err != nil {
				reg.Rollback()
				return err
			}
			return reg.Commit()
		}
		err := try(false)
		var want *VCPUState
		if err == nil {
			want = shows(t, v)
		}
		other := try(true)
		if (err == nil) != (other == nil) {
			t.Fatalf("%v; and after another state %v", err, other)
		}
		if err != nil {
			refused++
			continue
		}
		taken++
		sameState(t, "bytes that are others", shows(t, v), want)
		if t.Failed() {
			return
		}
	}
	if taken < 20 || refused < 20 {
		t.Errorf("%d were taken, and %d refused", taken, refused)
	}
	t.Logf("%d were taken, and %d refused", taken, refused)
}

// Each part of a state is tried for itself: what KVM refuses of it, it refuses also where the
// rest was taken before.
func TestEachPartIsRefusedAfterARestThatWasTaken(t *testing.T) {
	list, v, load := states(t)
	asked := 0
	for name, spoil := range map[string]func(s *VCPUState){
		"the MP state":         func(s *VCPUState) { s.mp.State = 77 },
		"a special register":   func(s *VCPUState) { s.sregs.CR4 |= 1 << 40 },
		"a mode":               func(s *VCPUState) { s.sregs.EFER |= 1 << 40 },
		"an extended register": func(s *VCPUState) { s.xcrs.Registers[0].Value |= 1 << 62 },
		"the XSAVE area":       func(s *VCPUState) { s.xsave[512+40] = 1 },
		"a debug register":     func(s *VCPUState) { s.debug.DR7 |= 1 << 40 },
		"an exception":         func(s *VCPUState) { s.events.E.Inject, s.events.E.Nr = 1, 40 },
	} {
		load(list[0])
		s, had := v.staged, &v.staged.spare.told
		spoil(s)
		had.ok = false
		if s.spare.try(s) == nil {
			t.Logf("this KVM takes %s whatever it is", name)
			continue
		}
		asked++
		load(list[0])
		if !had.ok {
			t.Fatal("what the spare has is not known")
		}
		spoil(s)
		if s.spare.try(s) == nil {
			t.Errorf("%s is taken after a state that was", name)
		}
		if had.ok {
			t.Errorf("%s was refused, and what the spare has is taken for known", name)
		}
	}
	if asked < 4 {
		t.Errorf("%d parts could be tried", asked)
	}
}

// A state is tried on a vCPU that has nothing of what was tried under another CPUID table: the
// guest's own may not have it.
func TestAStateIsTriedWithoutWhatAnotherCPUHad(t *testing.T) {
	const sysenterESP, value = 0x175, 0x12345000
	list, v, load := states(t)
	load(list[3])
	s, spare := v.staged, v.staged.spare
	read := func() uint64 {
		t.Helper()
		got, _, err := s.readMSR(spare.fd, sysenterESP)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	try := func() {
		t.Helper()
		if err := spare.try(s); err != nil {
			t.Fatal(err)
		}
	}
	for i := range s.msr.entries[:s.msr.n] {
		if m := &s.msr.entries[i]; m.Index == sysenterESP {
			m.Data = value
			try()
			m.Index, m.Data = msrTSC, 0 // the next state has none
		}
	}
	if read() != value {
		t.Fatal("the MSR was not tried")
	}
	try()
	if read() != value {
		t.Error("under the same table the vCPU is another")
	}
	for i := range s.cpuid.entries[:s.cpuid.n] {
		if e := &s.cpuid.entries[i]; e.Function == 1 {
			e.Eax ^= 0x10 // another model
		}
	}
	try()
	if got := read(); got != 0 {
		t.Errorf("the MSR is %#x, of a state of another CPU", got)
	}
	// The description of a CPU, too.
	if list, err := spare.refuses(s.cpuid.entries[:s.cpuid.n], s.apic, s.flags, []MSR{{sysenterESP, value}}, s.knowsMSR); err != nil || len(list) > 0 {
		t.Fatal(list, err)
	}
	if read() != value {
		t.Fatal("the described MSR was not tried")
	}
	load(list[3])
	if got := read(); got == value {
		t.Error("the vCPU has an MSR of another host's description")
	}
}

// Clocks, counters of events and what names memory to KVM are written again though they are the same; what a guest
// alone changes is not.
func TestWhatElapsesIsKnownByItsNumber(t *testing.T) {
	for _, index := range []uint32{
		0x10, 0x3b, 0x6e0, 0x12, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x40000021, 0x400000b1,
		0xc1, 0xc8, 0xe0, 0x309, 0x30b, 0x310, 0x38d, 0x38e, 0x38f, 0x390, 0x4c1, 0x4e0,
		0xc0010004, 0xc0010007, 0xc0010201, 0xc001020b, 0xc001021f, 0xc0000300, 0xc0000301, 0xc0000302,
	} {
		if !elapses(index) {
			t.Errorf("MSR %#x does not", index)
		}
	}
	for _, index := range []uint32{
		0x3a, 0x174, 0x175, 0x176, 0x179, 0x1a0, 0x277, 0x2ff, 0x400, 0x6a0, 0xc0, 0x186, 0x308, 0x391, 0x4c0,
		0xc0000080, 0xc0000081, 0xc0000102, 0xc0000103, 0xc0010000, 0xc0010015, 0xc00101ff, 0x4b564d05, 0x4b564d06,
	} {
		if elapses(index) {
			t.Errorf("MSR %#x does", index)
		}
	}
}

// A state may name, as an MSR that is 0, a register that it has elsewhere: that does not reach the vCPU, which
// would go on with it in the next state.
func TestARegisterThatAStateNamesAsAnMSRTooIsWhatItIsElsewhere(t *testing.T) {
	list, v, load := states(t)
	good := list[1] // the base of FS is not 0
	load(good)
	want := shows(t, v)
	const star = 0xc0000081
	entry := binary.LittleEndian.AppendUint64(nil, star)
	at := bytes.Index(good, append(entry, make([]byte, 8)...))
	if at < 0 {
		t.Skip("the guest has set STAR")
	}
	for _, index := range []uint64{0x1b, 0xc0000080, 0xc0000100, 0xc0000101, 0x830} {
		bad := bytes.Clone(good)
		binary.LittleEndian.PutUint64(bad[at:], index)
		load(bad)
		sameState(t, fmt.Sprintf("a state that names MSR %#x", index), shows(t, v), want)
		load(good)
		sameState(t, fmt.Sprintf("one after it, MSR %#x", index), shows(t, v), want)
	}
}
