//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// A value that KVM takes without an error and does not set is refused while the state is decoded, and named before
// any memory moves. Values of SPEC_CTRL and DEBUGCTL are such, on a KVM that runs without the hardware's help.
func TestAnMSRThatKVMTakesAndDoesNotSetIsRefusedWhileDecoded(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	vm, s := v.vm, v.staged
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	disobeyed := 0
	for _, m := range []MSR{{0x48, 1}, {0x1d9, 1}, {0xc001011f, 4}, {0xc0000103, 1 << 32}} {
		was, ok, err := s.readMSR(s.spare.fd, m.Index)
		if err != nil || !ok || s.writeMSR(s.spare.fd, m.Index, m.Value) != nil {
			continue // this KVM has none, or says no
		}
		if got, _, _ := s.readMSR(s.spare.fd, m.Index); got == m.Value {
			if err := s.writeMSR(s.spare.fd, m.Index, was); err != nil {
				t.Fatal(err)
			}
			continue // this KVM does as it is told
		}
		entry := func(value uint64) []byte {
			return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(m.Index)), value)
		}
		bad := bytes.Replace(list[0], entry(was), entry(m.Value), 1)
		if bytes.Equal(bad, list[0]) {
			continue // it is not part of the state
		}
		disobeyed++
		for range 2 { // and what was tried before hides nothing
			var msr *MSRError
			if err := reg.LoadDevices(bad, nil); !errors.As(err, &msr) || msr.Index != m.Index {
				t.Errorf("a state with %#x in MSR %#x: %v", m.Value, m.Index, err)
			}
			load(list[0])
		}
		c, err := vm.CPU()
		if err != nil {
			t.Fatal(err)
		}
		c.MSRs = []MSR{m}
		theirs, err := c.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.JudgeCPU(theirs); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%#x in MSR %#x, which is %#x here", m.Value, m.Index, was)) {
			t.Errorf("a description with %#x in MSR %#x: %v", m.Value, m.Index, err)
		}
	}
	if disobeyed == 0 {
		t.Skip("this KVM does as it is told")
	}
}

// A value that KVM takes without an error and does not set is refused while the state is tried.
func TestAnMSRThatKVMTakesAndDoesNotSetIsRefused(t *testing.T) {
	list, v, load := states(t)
	load(list[3])
	const tscAux = 0xc0000103
	s, spare := v.staged, v.staged.spare
	spare.all.mu.Lock()
	defer spare.all.mu.Unlock()
	none := func(int) bool { return false }
	if err := spare.obeyed(s, none); err != nil {
		t.Fatal("a state that was tried:", err)
	}
	at := slices.IndexFunc(s.msr.entries[:s.msr.n], func(m gokvm.MSREntry) bool { return m.Index == tscAux })
	if at < 0 {
		t.Skip("no TSC_AUX on this host")
	}
	s.msr.entries[at].Data = 7
	if err := s.writeMSR(spare.fd, tscAux, 5); err != nil { // as if KVM had kept that
		t.Fatal(err)
	}
	var msr *MSRError
	if err := spare.obeyed(s, none); !errors.As(err, &msr) || msr.Index != tscAux || msr.Value != 7 {
		t.Error(err)
	}
	if err := spare.obeyed(s, func(i int) bool { return i == at }); err != nil {
		t.Error("one that was read before:", err)
	}
	if err := s.writeMSR(spare.fd, tscAux, 7); err != nil {
		t.Fatal(err)
	}
	if err := spare.obeyed(s, none); err != nil {
		t.Error("one that KVM has set:", err)
	}
}

// KVM keeps 32 bits of SYSENTER_ESP for a guest with the CPUID of an AMD processor, and less of others: that it
// reads as another value is no reason to refuse a state.
func TestAnMSROfWhichKVMMayKeepLessIsNotReadBack(t *testing.T) {
	for _, index := range []uint32{0x174, 0x175, 0x176, 0x1a0, 0x277, 0xc0000081, 0xc0010007} {
		if keeps(index) {
			t.Errorf("MSR %#x is", index)
		}
	}
	for _, index := range []uint32{0x3a, 0x48, 0x8c, 0x8d, 0x8e, 0x8f, 0x1d9, 0xc0000103, 0xc001011f} {
		if !keeps(index) {
			t.Errorf("MSR %#x, of which KVM keeps all or nothing, is not", index)
		}
	}
}
