//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// shooting returns a VM that is paused with a shot of each of its vCPUs, and what saves
// it.
func shooting(t *testing.T, vcpus int) (*VM, func()) {
	t.Helper()
	require.Usable(t, require.KVM, Probe)
	p := guest.Params{VCPUs: vcpus, Pages: 8, Touch: 1}
	vm, err := Create(Config{VCPUs: vcpus, Memory: p.MemSize() + PageSize}) // the last page is a test's own
	if err != nil {
		t.Fatal(err)
	}
	vm.watching, vm.gathers = 20*time.Millisecond, 20*time.Millisecond // however few CPUs there are
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(func() {
		stop()
		group.Wait()
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := guest.Load(vm.Memory(), p); err != nil {
		t.Fatal(err)
	}
	for i, v := range vm.VCPUs() {
		regs, err := v.Regs()
		sregs, err2 := v.Sregs()
		guest.SetBootState(i, &regs, &sregs)
		if err := errors.Join(err, err2, v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()); err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			v.Run(ctx, v.Dispatch(Handler{IO: func(x *IO) error {
				if x.In {
					x.Data[0] = guest.StatusReady
				}
				return nil
			}}))
		})
	}
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	w := qemufile.NewWriter(io.Discard)
	save := func() {
		t.Helper()
		if err := errors.Join(reg.SaveDevices(w), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		fresh := 0
		for _, v := range vm.VCPUs() {
			if v.shot.fresh {
				fresh++
			}
		}
		if fresh == vcpus {
			return vm, save
		}
		save()
		if err := vm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no vCPU's thread saves it on its way into a pause")
	return nil, nil
}

// A vCPU that a device has sent an INIT after it has stopped is saved as one that begins anew, though its MP
// state is the same: with a local APIC that was off before, and one that was on.
func TestAnINITAfterAVCPUHasStoppedIsSaved(t *testing.T) {
	for _, on := range []byte{0, 1} {
		vm, save := shooting(t, 1)
		v := vm.vcpus[0]
		const spurious, resetRIP = 0xf0, 0xfff0
		lapic := v.shot.state.lapic
		if _, err := ioctl(v.fd, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&lapic)); err != nil {
			t.Fatal(err)
		}
		lapic.Regs[spurious+1] = lapic.Regs[spurious+1]&^1 | on
		if _, err := ioctl(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&lapic)); err != nil {
			t.Fatal(err)
		}
		if err := initFromTheIOAPIC(vm); err != nil {
			t.Fatal(err)
		}
		save()
		if v.state.regs.RIP != resetRIP {
			t.Errorf("local APIC on: %d; saved at RIP %#x, want that of a reset", on, v.state.regs.RIP)
		}
	}
}

// An interrupt that a device raises after the vCPU has stopped is in what is saved.
func TestWhatChangesAfterAVCPUHasStoppedIsSaved(t *testing.T) {
	for vcpus := 1; vcpus <= 2; vcpus++ {
		vm, save := shooting(t, vcpus)
		v := vm.vcpus[vcpus-1]
		at := v.shot.at
		const irr, vector = 0x200, 0x45
		lapic := v.state.lapic
		lapic.Regs[irr+vector/32*16+vector%32/8] |= 1 << (vector % 8)
		if _, err := ioctl(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&lapic)); err != nil {
			t.Fatal(err)
		}
		save()
		if v.state.lapic.Regs[irr+vector/32*16+vector%32/8]&(1<<(vector%8)) == 0 {
			t.Errorf("%d vCPUs: the interrupt is lost", vcpus)
		}
		if time.Since(at) < stale && v.shot.at != at {
			t.Error("the shot was not used")
		}
	}
}

// An NMI that comes after the vCPU has stopped is in what is saved.
func TestAnNMIAfterAVCPUHasStoppedIsSaved(t *testing.T) {
	const sendNMI = 0xae9a
	vm, save := shooting(t, 1)
	v := vm.vcpus[0]
	if _, err := ioctlValue(v.fd, "KVM_NMI", sendNMI, 0); err != nil {
		t.Skip(err)
	}
	save()
	if v.state.events.N.Pending == 0 {
		t.Error("the NMI is lost")
	}
}

// A shot is not used in a later pause, before which the other vCPUs have run though its own has not, nor when
// it is old: its TSC would be behind the VM's clock.
func TestAShotOfAnEarlierTimeIsNotUsed(t *testing.T) {
	for name, change := range map[string]func(*VCPU){
		"of an earlier pause": func(v *VCPU) {
			v.vm.mu.Lock()
			v.vm.resets++ // as by a Resume that no thread has seen before the next Pause
			v.vm.mu.Unlock()
			v.shot.at = time.Now().Add(time.Hour) // however long this test is not run, it is not old
		},
		"that is old": func(v *VCPU) { v.shot.at = v.shot.at.Add(-stale) },
	} {
		vm, save := shooting(t, 1)
		v := vm.vcpus[0]
		shot := v.shot.state
		change(v)
		save()
		if v.state == shot {
			t.Errorf("a shot %s was used", name)
		}
	}
}

// A register that is set while the vCPU is stopped is in what is saved, and so is all of a vCPU whose clock
// has gone on for long.
func TestAShotIsUsedOnlyForWhatItShows(t *testing.T) {
	vm, save := shooting(t, 1)
	v := vm.vcpus[0]
	regs, err := v.Regs()
	if err != nil {
		t.Fatal(err)
	}
	regs.R15 ^= 0x5555
	if err := v.SetRegs(regs); err != nil {
		t.Fatal(err)
	}
	save()
	if v.state.regs.R15 != regs.R15 {
		t.Errorf("R15 is %#x, %#x was saved", regs.R15, v.state.regs.R15)
	}

	vm, save = shooting(t, 1)
	v = vm.vcpus[0]
	early, _ := v.state.savedMSR(msrTSC)
	time.Sleep(2 * stale)
	save()
	if late, _ := v.state.savedMSR(msrTSC); late == early {
		t.Error("a TSC of long ago was saved beside a clock of now")
	}

	// Saved twice in one pause, the second time anew.
	early, _ = v.state.savedMSR(msrTSC)
	save()
	if late, _ := v.state.savedMSR(msrTSC); late == early {
		t.Error("the same TSC was saved twice")
	}
}

// What a vCPU's thread saved on its way into a pause is not what the vCPU has after a state was loaded into it.
func TestAShotOfBeforeALoadIsNotUsed(t *testing.T) {
	vm, save := shooting(t, 1)
	v, ctx := vm.vcpus[0], context.Background()
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	const spurious = 0xf0 // of a local APIC that is on: of one that is off a save looks at the registers in any case
	lapic := v.shot.state.lapic
	if _, err := ioctl(v.fd, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&lapic)); err != nil {
		t.Fatal(err)
	}
	lapic.Regs[spurious+1] |= 1
	if _, err := ioctl(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&lapic)); err != nil {
		t.Fatal(err)
	}
	stream := encode(t, reg)
	saved := v.state.regs
	for end := time.Now().Add(time.Minute); !v.shot.fresh || v.shot.state.regs == saved; {
		if time.Now().After(end) {
			t.Fatal("no thread saves the vCPU on its way into a pause")
		}
		vm.Resume(ctx)
		time.Sleep(time.Millisecond)
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if !v.shot.fresh {
			save()
		}
	}
	v.shot.at = time.Now().Add(time.Hour) // however long this test is not run, it is not old
	reg.NewSession()
	if err := errors.Join(reg.LoadDevices(stream, nil), reg.Commit()); err != nil {
		t.Fatal(err)
	}
	save()
	if v.state.regs != saved {
		t.Errorf("the registers are saved as %+v, and were loaded as %+v", v.state.regs, saved)
	}
}

// What is loaded is not lost in a pause that comes between its decoding and its commit.
func TestAPauseDoesNotTouchWhatIsStaged(t *testing.T) {
	vm, save := shooting(t, 1)
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	save()
	saved := vm.vcpus[0].state.regs
	stream := encode(t, reg)
	ctx := context.Background()
	vm.Resume(ctx)
	time.Sleep(2 * time.Millisecond)
	reg.NewSession()
	if err := reg.LoadDevices(stream, nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		save()
		vm.Resume(ctx)
		time.Sleep(time.Millisecond)
	}
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reg.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := vm.vcpus[0].Regs(); err != nil || got != saved {
		t.Errorf("the registers are %+v, were %+v (%v)", got, saved, err)
	}
}

// What was captured is encoded as it was, though the guest has run on since, and a second
// pause has had its vCPUs save themselves again.
func TestASecondPauseDoesNotTouchWhatIsStillToBeEncoded(t *testing.T) {
	for vcpus := 1; vcpus <= 2; vcpus++ {
		vm, _ := shooting(t, vcpus)
		reg := &vmstate.Registry{}
		if err := vm.Register(reg); err != nil {
			t.Fatal(err)
		}
		if err := reg.CaptureDevices(); err != nil {
			t.Fatal(err)
		}
		var captured []VCPUState
		for _, v := range vm.vcpus {
			s := *v.state
			s.xsave = append([]byte(nil), s.xsave...)
			captured = append(captured, s)
		}
		ctx := context.Background()
		again := 0
		for end := time.Now().Add(time.Minute); again < 5 && time.Now().Before(end); {
			for _, v := range vm.vcpus {
				v.shot.used = true // as if each pause's state were asked for
			}
			vm.Resume(ctx)
			time.Sleep(time.Millisecond)
			if err := vm.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			if v := vm.vcpus[vcpus-1]; v.shot.fresh && v.shot.state.regs != captured[vcpus-1].regs {
				again++
			}
		}
		if again < 5 {
			t.Fatal("no vCPU was saved again")
		}
		var b bytes.Buffer
		w := qemufile.NewWriter(&b)
		if err := errors.Join(reg.SaveCaptured(w), w.Flush()); err != nil {
			t.Fatal(err)
		}
		vmstate.PutEOF(w)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		reg.NewSession()
		if err := reg.LoadDevices(b.Bytes(), nil); err != nil {
			t.Fatal(err)
		}
		for i, v := range vm.vcpus {
			if v.staged.regs != captured[i].regs || v.staged.msr != captured[i].msr || !bytes.Equal(v.staged.xsave, captured[i].xsave) {
				t.Errorf("%d vCPUs: vCPU %d was encoded as it is now", vcpus, i)
			}
		}
	}
}
