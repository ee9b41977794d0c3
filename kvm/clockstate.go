//go:build linux && amd64

package kvm

import (
	"fmt"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// clockRealtime is a flag of a clock: when KVM reads the clock, it says that the wall clock's
// time comes with it; when KVM sets the clock, it makes KVM add the time that has passed since by
// the wall clock. (KVM api, "KVM_SET_CLOCK"; Linux 5.16.)
const clockRealtime = 1 << 2

// ClockState carries the VM's paravirtual clock (kvmclock) between KVM and a stream.
type ClockState struct {
	data gokvm.ClockData
	wall int64 // wall clock of the saving host when data was read, ns since 1970; 0: not known
}

// Save reads the clock of a VM whose vCPUs are stopped.
func (s *ClockState) Save(vm int) error {
	if _, err := ioctl(vm, "KVM_GET_CLOCK", kvmGetClock, unsafe.Pointer(&s.data)); err != nil {
		return err
	}
	s.wall = time.Now().UnixNano()
	if s.data.Flags&clockRealtime != 0 {
		s.wall = int64(s.data.Realtime)
	}
	// KVM of some kernels begins the clock of a new VM a little before 0. A host whose wall clock
	// is in the years before 1970 does not know the time.
	if int64(s.data.Clock) < 0 {
		s.data.Clock = 0
	}
	s.wall = max(s.wall, 0)
	return nil
}

// Behind returns how much time has passed since Save by the wall clocks of the two
// hosts; 0 if that is not known or negative.
func (s *ClockState) Behind() time.Duration {
	if s.wall == 0 {
		return 0
	}
	return max(0, time.Duration(time.Now().UnixNano()-s.wall))
}

// Restore sets the clock to where it was, after the vCPUs have been restored. (The
// flags are 0: kernels before 5.16 refuse any.)
func (s *ClockState) Restore(vm int) error {
	return s.set(vm, gokvm.ClockData{Clock: s.data.Clock})
}

// RestoreLater sets the clock to where it was, plus the time that has passed since by the
// wall clocks of the two hosts.
func (s *ClockState) RestoreLater(vm int) error {
	return s.set(vm, gokvm.ClockData{Clock: s.data.Clock + uint64(s.Behind())})
}

// restore sets the clock. With realtime KVM itself adds the time that has passed.
func (s *ClockState) restore(vm int, realtime bool) error {
	if !realtime || s.wall == 0 {
		return s.RestoreLater(vm)
	}
	return s.set(vm, gokvm.ClockData{Clock: s.data.Clock, Flags: clockRealtime, Realtime: uint64(s.wall)})
}

func (s *ClockState) set(vm int, data gokvm.ClockData) error {
	s.data = data
	_, err := ioctl(vm, "KVM_SET_CLOCK", kvmSetClock, unsafe.Pointer(&s.data))
	return err
}

// clockMax is the latest time that a clock may have, in ns: 146 years. A clock of 292 years, to which
// the time that has passed might be added, is negative to KVM, and kernels warn of that (WARN_ON),
// which ends some hosts.
const clockMax = 1 << 62

// VMState names the fields of the state, for a vmstate.Registry.
func (s *ClockState) VMState(f *vmstate.Fields) {
	f.Uint64("clock", &s.data.Clock)
	vmstate.Set(f, &s.wall, 0)
	f.Subsection("kvm/clock/wall", 1, s.wall != 0, func(f *vmstate.Fields) { f.Int64("wall", &s.wall) })
	if f.Loading() && (s.data.Clock > clockMax || s.wall < 0) {
		f.Fail(fmt.Errorf("%w: clock at %d ns, by the wall clock at %d ns since 1970", ErrState, s.data.Clock, s.wall))
	}
}
