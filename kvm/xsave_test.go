//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// keysAtHere is where the areas of these tests have the protection keys.
const keysAtHere = 0x980

// keeper is what a KVM has of the XSAVE area, with the protection keys apart.
type keeper struct {
	area  [xsaveMin]byte
	keys  uint32
	stay  bool // it leaves the keys as they are where an area has them in their initial state
	none  bool // it takes no keys
	calls int
}

func (k *keeper) put(area []byte) error {
	k.calls++
	there := binary.LittleEndian.Uint64(area[xstateBV:])>>keysFeature&1 != 0
	switch {
	case there && k.none:
		return errors.New("invalid argument")
	case there:
		k.keys = binary.LittleEndian.Uint32(area[keysAtHere:])
	case !k.stay:
		k.keys = 0
	}
	copy(k.area[:], area)
	return nil
}

func (k *keeper) get(area []byte) error {
	k.calls++
	copy(area, k.area[:])
	binary.LittleEndian.PutUint32(area[keysAtHere:], k.keys)
	return nil
}

// A vCPU that is taken back to a time at which its guest had all rights has them, whatever KVM makes of
// an area that says so. What the guest then has is otherwise the area, byte for byte.
func TestAGuestThatIsTakenBackHasTheRightsOfThatTime(t *testing.T) {
	for name, kvm := range map[string]*keeper{"reset": {}, "stay": {stay: true}, "none": {none: true}} {
		var keys keysKVM
		area := make([]byte, xsaveMin)
		area[xstateBV], area[keysAtHere], area[700] = 7, 9, 5 // what an area has of a component in its initial state means nothing
		for round := range 3 {
			if kvm.keys = 0x55555550; kvm.none {
				kvm.keys = 0
			}
			kvm.calls = 0
			was := string(area)
			put := func() error { return kvm.put(area) }
			err := error(nil)
			if keys.plain(area) {
				err = put()
			} else {
				err = keys.set(area, keysAtHere, put, kvm.get)
			}
			if err != nil {
				t.Fatal(name, err)
			}
			if kvm.keys != 0 {
				t.Errorf("%s, round %d: the guest has the keys %#x", name, round, kvm.keys)
			}
			if string(kvm.area[:]) != was || string(area) != was {
				t.Errorf("%s, round %d: the area has changed", name, round)
			}
			if most := map[string]int{"reset": 1, "stay": 2, "none": 1}[name]; round > 0 && kvm.calls > most {
				t.Errorf("%s: %d calls, want %d", name, kvm.calls, most)
			}
		}
	}
}

// A vCPU of this KVM, too.
func TestAVCPUThatIsTakenBackHasTheProtectionKeysOfThatTime(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	at := s.keysAt()
	if at == 0 {
		t.Skip("no protection keys here")
	}
	le := binary.LittleEndian
	with := func(bit uint64, keys uint32) {
		le.PutUint64(s.xsave[xstateBV:], le.Uint64(s.xsave[xstateBV:])&^(1<<keysFeature)|bit<<keysFeature)
		le.PutUint32(s.xsave[at:], keys)
	}
	for _, does := range []int32{keysUnknown, keysReset, keysStay} {
		if does == keysReset && s.sys.keys.Load() == keysStay {
			continue // it would be a lie here
		}
		with(1, 0x54)
		if err := v.restore(); err != nil {
			t.Skip("this KVM takes no protection keys:", err)
		}
		if got := le.Uint32(shows(t, v).xsave[at:]); got != 0x54 {
			t.Fatalf("the vCPU has the keys %#x", got)
		}
		v.staged.sys.keys.Store(does)
		with(0, 0)
		if err := v.restore(); err != nil {
			t.Fatal(err)
		}
		if got := le.Uint32(shows(t, v).xsave[at:]); got != 0 {
			t.Errorf("the vCPU has the keys %#x of later", got)
		}
	}
}

// The host's kernel would not survive a component that is in use and that the guest has switched off.
func TestAComponentThatTheGuestHasSwitchedOffIsInItsInitialState(t *testing.T) {
	from, reg := synthetic(t)
	const tiles = 18
	le := binary.LittleEndian
	make := func(s *VCPUState) {
		s.sys.msrs[3] = msrXFD
		s.msr.entries[3] = gokvm.MSREntry{Index: msrXFD, Data: 1 << tiles}
		le.PutUint64(s.xsave[xstateBV:], 7|1<<tiles)
	}
	make(from)
	to, toReg := synthetic(t)
	make(to)
	if err := errors.Join(toReg.LoadDevices(encode(t, reg), nil), toReg.Commit()); err != nil {
		t.Fatal(err)
	}
	if bv := le.Uint64(to.xsave[xstateBV:]); bv != 7 {
		t.Errorf("XSTATE_BV is %#x", bv)
	}
}

// An area that is shorter than this host's is loaded into one: nothing of an earlier state is behind it.
func TestNothingIsBehindAnAreaThatIsShorterThanThisHosts(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	s.spare = nil // which would see to it, and is not there for a state alone
	if s.xsaveSize = xsaveHeaders + 256; int(s.xsaveSize) >= len(s.xsave) {
		t.Skip("this host's is no longer")
	}
	for i := range s.xsave[s.xsaveSize:] {
		s.xsave[int(s.xsaveSize)+i] = 0x55
	}
	if err := v.restore(); err != nil {
		t.Fatal(err)
	}
	for i, b := range s.xsave[s.xsaveSize:] {
		if b != 0 {
			t.Fatalf("byte %d behind it is %#x", i, b)
		}
	}
}
