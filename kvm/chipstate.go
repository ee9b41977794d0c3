//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/vmstate"
)

// Interrupt controllers of a VM, and how much of struct kvm_irqchip each fills.
const (
	chips      = 3 // both PICs, IOAPIC
	picSize    = 16
	ioapicSize = 216
)

// ChipState carries the state of a VM's interrupt controllers and timer between KVM and a stream,
// as far as they are in the kernel. It belongs to one goroutine at a time.
type ChipState struct {
	hasChips, hasPIT bool
	present          bool // the stream says that it has one of them
	chip             [chips]gokvm.IRQChip
	pit              gokvm.PITState2
}

// NewChipState returns a state for a VM. Interrupt controllers and a timer that the VM is
// to have must have been created.
func NewChipState(vm int) (*ChipState, error) {
	s := &ChipState{}
	absent := func(err error) bool {
		return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL)
	}
	err := s.saveChips(vm)
	s.hasChips = err == nil
	if err != nil && !absent(err) {
		return nil, err
	}
	err = s.savePIT(vm)
	s.hasPIT = err == nil
	if err != nil && !absent(err) {
		return nil, err
	}
	return s, nil
}

// Save reads the state of a VM whose vCPUs are stopped.
func (s *ChipState) Save(vm int) error {
	if s.hasChips {
		if err := s.saveChips(vm); err != nil {
			return err
		}
	}
	if s.hasPIT {
		return s.savePIT(vm)
	}
	return nil
}

// Restore writes the state to a VM whose vCPUs are stopped, before the states of the
// vCPUs.
func (s *ChipState) Restore(vm int) error {
	if s.hasChips {
		if err := s.restoreChips(vm); err != nil {
			return err
		}
	}
	if s.hasPIT {
		return s.restorePIT(vm)
	}
	return nil
}

// VMState names the fields of the state, for a vmstate.Registry.
func (s *ChipState) VMState(f *vmstate.Fields) {
	s.chipFields(f)
	s.pitFields(f)
}

func (s *ChipState) saveChips(vm int) error {
	for i := range s.chip {
		s.chip[i].ChipID = uint32(i)
		if _, err := ioctl(vm, "KVM_GET_IRQCHIP", kvmGetIRQChip, unsafe.Pointer(&s.chip[i])); err != nil {
			return err
		}
	}
	return nil
}

// restoreChips writes the PIC that is the slave before its master. With each write KVM looks whether
// the slave has an interrupt for its master: the master would otherwise be given one of the slave that
// was there before, and keep it.
func (s *ChipState) restoreChips(vm int) error {
	for _, i := range [chips]int{1, 0, 2} {
		s.chip[i].ChipID = uint32(i)
		if _, err := ioctl(vm, "KVM_SET_IRQCHIP", kvmSetIRQChip, unsafe.Pointer(&s.chip[i])); err != nil {
			return err
		}
	}
	return nil
}

func (s *ChipState) savePIT(vm int) error {
	_, err := ioctl(vm, "KVM_GET_PIT2", kvmGetPIT2, unsafe.Pointer(&s.pit))
	return err
}

func (s *ChipState) restorePIT(vm int) error {
	_, err := ioctl(vm, "KVM_SET_PIT2", kvmSetPIT2, unsafe.Pointer(&s.pit))
	return err
}

// chipFields names the fields of the interrupt controllers. Whether a VM has them is
// decided when it is made; both sides must agree.
func (s *ChipState) chipFields(f *vmstate.Fields) {
	s.present = s.hasChips
	f.Bool("present", &s.present)
	f.Check("present", s.present == s.hasChips)
	if !s.hasChips {
		return
	}
	f.Info("pic_master", "kvm_pic_state", s.chip[0].Chip[:picSize])
	f.Info("pic_slave", "kvm_pic_state", s.chip[1].Chip[:picSize])
	f.Info("ioapic", "kvm_ioapic_state", s.chip[2].Chip[:ioapicSize])
}

// pitCountMax is the longest period of a 16-bit counter, which a guest writes as 0.
const pitCountMax = 0x10000

func (s *ChipState) pitFields(f *vmstate.Fields) {
	s.present = s.hasPIT
	f.Bool("present", &s.present)
	f.Check("present", s.present == s.hasPIT)
	if !s.hasPIT {
		return
	}
	f.StructArray("channels", "kvm/pit/channel", 1, len(s.pit.Channels), func(i int, f *vmstate.Fields) {
		c := &s.pit.Channels[i]
		f.Uint32("count", &c.Count)
		f.Uint16("latched_count", &c.LatchedCount)
		f.Uint8("count_latched", &c.CountLatched)
		f.Uint8("status_latched", &c.StatusLatched)
		f.Uint8("status", &c.Status)
		f.Uint8("read_state", &c.ReadState)
		f.Uint8("write_state", &c.WriteState)
		f.Uint8("write_latch", &c.WriteLatch)
		f.Uint8("rw_mode", &c.RWMode)
		f.Uint8("mode", &c.Mode)
		f.Uint8("bcd", &c.BCD)
		f.Uint8("gate", &c.Gate)
		// The time at which the counter was loaded is left out: it is a time of this host's
		// clock, and KVM sets it anew on restore.
		if f.Loading() && c.Count > pitCountMax {
			f.Fail(fmt.Errorf("%w: PIT channel %d counts from %d", ErrState, i, c.Count))
		}
	})
	f.Uint32("flags", &s.pit.Flags)
}
