//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// kvmSection is the place of the body of a section in a stream.
type kvmSection struct {
	name       string
	begin, end int
}

// kvmSections returns where the sections of a VM with one vCPU are in a stream of its devices.
func kvmSections(t *testing.T, stream []byte) []kvmSection {
	t.Helper()
	const before, behind, footer = 1 + 4 + 1, 4 + 4, 1 + 4 // type, id and length of the name; instance and version
	var list []kvmSection
	for _, name := range []string{"kvm/irqchip", "kvm/pit", "kvm/vcpu", "kvm/clock"} {
		at := bytes.Index(stream, append([]byte{byte(len(name))}, name...))
		if at < 0 {
			t.Fatalf("no section %s", name)
		}
		if n := len(list); n > 0 {
			list[n-1].end = at + 1 - before - footer
		}
		list = append(list, kvmSection{name, at + 1 + len(name) + behind, len(stream) - 1 - footer})
	}
	return list
}

// goesOn returns the places in the stream, which v was just saved to, of what goes on while the vCPU stands still:
// MSRs that count time, and the clock.
func goesOn(t *testing.T, v *VCPU, stream []byte) (places []kvmSection) {
	t.Helper()
	msrs := raw(&v.state.msr.entries[0], int(v.state.msr.n))
	table := bytes.Index(stream, msrs)
	if table < 0 {
		t.Fatal("no MSRs in the stream")
	}
	for i, m := range v.state.msr.entries[:v.state.msr.n] {
		switch m.Index {
		case msrTSC, 0x3b, 0x40000010, 0x40000020:
			at := table + 16*i + 8
			places = append(places, kvmSection{begin: at, end: at + 8})
		}
	}
	return append(places, kvmSections(t, stream)[3])
}

// untriable reports whether nothing is promised of an MSR: it is one of Hyper-V's, which the spare VM is not made for,
// or one of KVM's own that is not known.
func untriable(index uint32) bool {
	const firstUnknown = 0x4b564d09
	return index>>16 == 0x4000 || index>>8 == 0x4b564d && index >= firstUnknown
}

// Each place of each section of a VM has extreme values, as wide as any field is, in both orders of bytes. Such a
// state is refused by the section that has it, with the VM as it was, or it is taken, and KVM takes it as
// well. Whatever was taken, a good state that follows is there to the last bit.
func TestEveryFieldOfAVMMayHaveItsExtremes(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds")
	}
	list, v, load := states(t)
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	good := list[0]
	load(good)
	want := encode(t, reg)
	places := goesOn(t, v, want)
	steady := func(stream []byte) []byte {
		for _, p := range places {
			clear(stream[min(p.begin, len(stream)):min(p.end, len(stream))])
		}
		return stream
	}
	want = steady(want)
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range kvmSections(t, good) {
		share, restore := 1, 2 // each of the places, and a good state after every second one that was taken
		if s.name == "kvm/vcpu" {
			share, restore = 40, 10
		}
		took, refused := 0, 0
		seen := map[string]bool{string(good): true}
		try := func(bad []byte, at, width int) {
			if seen[string(bad)] {
				return
			}
			seen[string(bad)] = true
			reg.NewSession()
			err := reg.LoadDevices(bad, nil)
			if err == nil {
				took++
				var msr *MSRError
				if err := reg.Commit(); err != nil && !(errors.As(err, &msr) && untriable(msr.Index)) {
					t.Errorf("%s, bytes %d to %d are % x: taken, and then: %v", s.name, at-s.begin, at-s.begin+width, bad[at:at+width], err)
				}
			} else {
				refused++
				var section *vmstate.SectionError
				if !errors.As(err, &section) || section.Section.Name != s.name {
					t.Errorf("%s, bytes %d to %d are % x: refused without its place: %v", s.name, at-s.begin, at-s.begin+width, bad[at:at+width], err)
				}
			}
			if err == nil && took%restore == 0 {
				load(good)
			} else if err == nil || refused%restore != 0 {
				return
			}
			if err != nil && took%restore != 0 { // of another state that was taken
				return
			}
			if got := steady(encode(t, reg)); !bytes.Equal(got, want) {
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("%s, bytes %d to %d are % x: %v; afterwards byte %d of the stream is %#x, want %#x", s.name, at-s.begin, at-s.begin+width, bad[at:at+width], err, i, got[i], want[i])
					}
				}
				t.Fatalf("the stream has %d bytes, want %d", len(got), len(want))
			}
		}
		for at := s.begin; at < s.end; at++ {
			if r.IntN(share) != 0 {
				continue
			}
			for width := 1; width <= 8 && at+width <= s.end; width *= 2 {
				most := ^uint64(0) >> (64 - 8*width)
				for _, x := range []uint64{0, 1, most >> 1, most>>1 + 1, most} {
					p := binary.BigEndian.AppendUint64(nil, x)[8-width:]
					for range 2 {
						bad := bytes.Clone(good)
						copy(bad[at:], p)
						try(bad, at, width)
						slices.Reverse(p)
					}
				}
			}
		}
		load(good)
		if took == 0 || refused == 0 && s.name != "kvm/irqchip" {
			t.Errorf("%s: %d states were taken and %d refused: this test tests little", s.name, took, refused)
		}
		t.Logf("%s: %d states were taken and %d refused", s.name, took, refused)
	}
}
