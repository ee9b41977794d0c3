//go:build linux && amd64

package kvm

import (
	"context"
	"testing"
	"time"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// left returns the area as a KVM leaves it at an exit, if it stores all that ask has asked for.
func left() *syncArea {
	a := &syncArea{}
	a.ask()
	a.regs = gokvm.Regs{RAX: 1, RIP: 2, RFLAGS: 2}
	a.sregs = gokvm.Sregs{CR0: 3, ApicBase: 0xfee00900}
	a.events = gokvm.VCPUEvents{Flags: 0xd, SipiVector: 4}
	return a
}

func TestRegistersAreTakenOnlyIfKVMHasLeftThem(t *testing.T) {
	var s VCPUState
	a := left()
	if !a.take(&s, unix.EINTR) || s.regs != a.regs || s.sregs.CR0 != 3 || s.sregs.APICBase != 0xfee00900 || s.events != a.events {
		t.Errorf("what was left was not taken: %+v", s)
	}
	for why, spoil := range map[string]func(*syncArea){
		"no registers":          func(a *syncArea) { a.regs.RFLAGS = 0 },
		"no special registers":  func(a *syncArea) { a.sregs.ApicBase = ^uint64(0) },
		"no events":             func(a *syncArea) { a.events.Flags = 0 },
		"an exception":          func(a *syncArea) { a.events.E.Inject = 1 },
		"a pending exception":   func(a *syncArea) { a.events.E.Pending = 1 },
		"nothing since the ask": func(a *syncArea) { a.ask() },
	} {
		var s VCPUState
		a := left()
		if spoil(a); a.take(&s, unix.EINTR) || s.regs != (gokvm.Regs{}) {
			t.Errorf("%s: it was taken", why)
		}
	}
	for _, errno := range []unix.Errno{0, unix.EAGAIN, unix.EINVAL} {
		if left().take(&s, errno) {
			t.Errorf("after %v it was taken", errno)
		}
	}
}

// A host that uses the area itself finds it as it was: with what it wants KVM to leave at
// each exit, and what it wants KVM to take.
func TestAHostThatUsesTheAreaKeepsIt(t *testing.T) {
	for _, valid := range []uint64{0, 1, syncAll} {
		a := &syncArea{valid: valid}
		if !a.with(func() bool { return a.valid == syncAll && a.dirty == 0 }) {
			t.Error("not all was asked for")
		}
		if a.valid != valid {
			t.Errorf("KVM leaves %#x at each exit, and left %#x", a.valid, valid)
		}
	}
	a := &syncArea{valid: syncAll, dirty: 1, regs: gokvm.Regs{RAX: 5, RFLAGS: 2}}
	was := *a
	if a.with(func() bool { t.Error("KVM takes them before the vCPU runs"); return true }) || *a != was {
		t.Error("what KVM was to take is gone")
	}
}

func TestAKVMThatLeavesSomethingElseIsAskedOneByOne(t *testing.T) {
	y := synced{area: left()}
	y.compared(true)
	if !y.proved {
		t.Error("what is the same is no proof")
	}
	y = synced{area: left()}
	for n := 1; n <= mostWrong; n++ {
		if y.area == nil {
			t.Fatalf("given up after %d", n-1)
		}
		y.compared(false)
	}
	if y.area != nil || y.proved {
		t.Error("it is still believed")
	}
	sys := &System{syncRegs: true}
	if newSynced(sys, make([]byte, 2*PageSize)).area == nil {
		t.Error("KVM does it, and is not asked")
	}
	if newSynced(&System{}, make([]byte, 2*PageSize)).area != nil || newSynced(sys, make([]byte, 300)).area != nil {
		t.Error("KVM, or the mapping, does not have it")
	}
}

// What a vCPU's thread takes from struct kvm_run is what the calls say, in pause after
// pause.
func TestWhatAShotTakesIsWhatTheCallsSay(t *testing.T) {
	vm, save := shooting(t, 1)
	v := vm.vcpus[0]
	if v.sync.area == nil {
		t.Skip("this KVM does not do it")
	}
	ctx := context.Background()
	other := v.state.another()
	other.knows(v.state)
	proved := 0
	for end := time.Now().Add(time.Minute); proved < 50 && time.Now().Before(end); {
		if v.shot.fresh && v.sync.proved {
			proved++
			if err := other.Save(v.fd); err != nil {
				t.Fatal(err)
			}
			if got := v.shot.state; got.regs != other.regs || got.sregs != other.sregs || got.events != other.events || got.mp != other.mp {
				t.Fatalf("pause %d: %+v %+v %+v, but %+v %+v %+v", proved, got.regs, got.sregs, got.events, other.regs, other.sregs, other.events)
			}
		}
		save()
		if err := vm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if proved < 50 {
		t.Errorf("%d of 50 shots had it", proved)
	}
}

// A vCPU in PAE paging has its PDPTRs in what is saved, though they are not in struct
// kvm_run; and a KVM that leaves nothing at all costs a shot, no register.
func TestAShotHasWhatStructKVMRunLacks(t *testing.T) {
	vm, save := shooting(t, 1)
	v := vm.vcpus[0]
	if v.sync.area == nil {
		t.Skip("this KVM does not do it")
	}
	s := v.shot.state
	s.sregs.CR0, s.sregs.CR4, s.sregs.EFER = cr0PG|cr0PE, cr4PAE, 0
	if !s.paePaging() {
		t.Error("PAE paging is not seen")
	}
	s.sregs.EFER = eferLME | eferLMA
	if s.paePaging() {
		t.Error("long mode is taken for PAE paging")
	}
	save()

	// This KVM stores nothing.
	v.sync = synced{area: &syncArea{}, proved: true}
	regs, err := v.Regs()
	if err != nil {
		t.Fatal(err)
	}
	s = v.shot.state // save has taken the other
	s.regs = gokvm.Regs{}
	v.own.Lock()
	err = v.saveMost()
	v.own.Unlock()
	if err != nil || s.regs != regs {
		t.Errorf("saved %+v, the registers are %+v (%v)", s.regs, regs, err)
	}
}
