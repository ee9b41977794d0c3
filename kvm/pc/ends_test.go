//go:build linux && amd64

package pc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// endings are what a guest in 32-bit mode may do at the end, with what Run returns then.
var endings = map[string]struct {
	code []byte
	is   func(error) bool
}{
	"it powers off": {[]byte{0x66, 0xba, 0x04, 0x61, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef}, // mov dx, 0x6104; mov ax, 0x3400; out dx, ax
		func(err error) bool { return errors.Is(err, ErrPowerOff) }},
	"it resets": {[]byte{0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee}, // mov dx, 0xcf9; mov al, 6; out dx, al
		func(err error) bool { return errors.Is(err, ErrReset) }},
	"a fault of it has no handler": {[]byte{0xb9, 0x02, 0x01, 0, 0xc0, 0xb8, 0x34, 0x12, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x0b}, // KernelGSBase = 0x1234; ud2
		func(err error) bool {
			var fault *TripleFaultError
			return errors.As(err, &fault)
		}},
	"KVM cannot emulate it": {[]byte{0xb8, 0, 0, 0, 0xd0, 0xdd, 0x30}, // mov eax, 0xd0000000; fnsave [eax], where no memory is
		func(err error) bool {
			var exit *kvm.ExitError
			return errors.As(err, &exit)
		}},
}

// A guest may end at any moment: in the midst of a pause, or between two, while its state is taken or given back to it. Whoever pauses
// it goes on, Run says how it ended, and nothing is left.
func TestAGuestMayEndInTheMidstOfAPause(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			before := leaks.Now(t)
			for round := range uint32(6) {
				endsAmidPauses(ctx, t, 1+12*round*round, ending.code, ending.is)
			}
			before.Check(t, "a guest that has ended")
		})
	}
}

// endsAmidPauses runs a guest that counts in a loop, and then ends, while it is paused again and again.
func endsAmidPauses(ctx context.Context, t *testing.T, count uint32, end []byte, is func(error) bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := Create(Config{VCPUs: 2, Memory: 1 << 20, Devices: Devices{Disks: []Disk{{Storage: blank{}}}}})
	must(err)
	defer func() { must(m.Close()) }()
	const at = 0x1000
	program := binary.LittleEndian.AppendUint32([]byte{0xb9}, count) // mov ecx, count
	program = append(program, 0xe6, 0x80, 0xe2, 0xfc)                // out 0x80, al; loop to it
	copy(m.memory[at:], append(append(program, end...), 0xeb, 0xfe)) // jmp to itself
	v := m.vm.VCPUs()[0]
	s, err := v.Sregs()
	must(err)
	s.CR0, s.IDT.Limit = 1, 0 // protected mode
	s.CS.Base, s.CS.Limit, s.CS.Selector, s.CS.Typ, s.CS.DB, s.CS.G = 0, 1<<32-1, 8, 11, 1, 1
	s.DS.Base, s.DS.Limit, s.DS.Selector, s.DS.Typ, s.DS.DB, s.DS.G = 0, 1<<32-1, 16, 3, 1, 1
	s.ES, s.FS, s.GS, s.SS = s.DS, s.DS, s.DS, s.DS
	must(errors.Join(v.SetSregs(s), v.SetRegs(kvm.Regs{RIP: at, RFLAGS: 2})))
	var reg vmstate.Registry
	must(m.Register(&reg))
	reg.NewSession()

	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	must(m.Resume(ctx))
	for pauses, ended := 0, false; !ended; pauses++ {
		select {
		case err := <-done:
			if !is(err) {
				t.Errorf("Run: %v", err)
			}
			var fault *TripleFaultError
			if base, e := v.MSR(0xc0000102); e != nil || errors.As(err, &fault) && fault.KernelGSBase != base {
				t.Errorf("%v; KernelGSBase is %#x, %v", err, base, e) // older kernels forget it at the fault
			}
			ended = true
		default:
		}
		must(m.Pause(ctx))
		var b bytes.Buffer
		w := qemufile.NewWriter(&b)
		must(reg.SaveDevices(w))
		vmstate.PutEOF(w)
		must(w.Flush())
		if pauses%2 == 1 {
			must(errors.Join(reg.LoadDevices(b.Bytes(), nil), reg.Commit()))
		}
		must(m.Resume(ctx))
	}
}
