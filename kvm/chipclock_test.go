//go:build linux && amd64

package kvm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// section returns the section of a device, and take loads one into another.
func section(t *testing.T, d vmstate.Device) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	var reg vmstate.Registry
	if err := errors.Join(reg.Register(vmstate.Entry{Name: "kvm/clock", Version: 1, MinVersion: 1}, d), reg.SaveDevices(w)); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func take(d vmstate.Device, section []byte) error {
	var reg vmstate.Registry
	if err := reg.Register(vmstate.Entry{Name: "kvm/clock", Version: 1, MinVersion: 1}, d); err != nil {
		return err
	}
	if err := reg.LoadDevices(section, nil); err != nil {
		return err
	}
	return reg.Commit()
}

// A clock that is saved without the time of day has none where it is loaded, whatever was loaded there before.
func TestAClockWithoutTheTimeOfDayHasNoneOfAnother(t *testing.T) {
	var to ClockState
	for _, from := range []ClockState{{wall: 5}, {}, {wall: 7}} {
		if err := take(&to, section(t, &from)); err != nil {
			t.Fatal(err)
		}
		if to.wall != from.wall {
			t.Errorf("the time of day is %d, want %d", to.wall, from.wall)
		}
	}
}

// A channel of the timer counts from 65,536 at most.
func TestATimerThatCountsFromTooFarIsRefused(t *testing.T) {
	for i := range 3 {
		from, to := ChipState{hasPIT: true}, ChipState{hasPIT: true}
		from.pit.Channels[i].Count = pitCountMax
		if err := take(&to, section(t, &from)); err != nil || to.pit.Channels[i].Count != pitCountMax {
			t.Errorf("channel %d counts from the most: %v", i, err)
		}
		for _, n := range []uint32{pitCountMax + 1, 1<<32 - 1} {
			from.pit.Channels[i].Count = n
			if err := take(&to, section(t, &from)); !errors.Is(err, ErrState) || to.pit.Channels[i].Count != pitCountMax {
				t.Errorf("channel %d counts from %d: %v, and it counts from %d", i, n, err, to.pit.Channels[i].Count)
			}
		}
	}
}

// A clock is refused that is, or soon would be, negative to KVM, and so is a wall clock from before 1970.
func TestAClockThatIsTooFarIsRefused(t *testing.T) {
	var to ClockState
	for _, c := range []struct {
		clock uint64
		wall  int64
		taken bool
	}{
		{clockMax, 0, true}, {0, 1<<63 - 1, true}, {5, 5, true},
		{clockMax + 1, 0, false}, {1 << 63, 0, false}, {1<<64 - 1, 0, false}, {0, -1, false}, {0, -1 << 63, false},
	} {
		from := ClockState{wall: c.wall}
		from.data.Clock = c.clock
		err := take(&to, section(t, &from))
		if c.taken && (err != nil || to.data.Clock != c.clock || to.wall != c.wall) || !c.taken && !errors.Is(err, ErrState) {
			t.Errorf("clock %d, wall clock %d: %v", c.clock, c.wall, err)
		}
		if later := to.data.Clock + uint64(to.Behind()); int64(later) < 0 {
			t.Errorf("clock %d, wall clock %d: later it is %d", c.clock, c.wall, int64(later))
		}
	}
}

// An interrupt that waits in the second PIC when a state is loaded is not one of that state.
func TestNoInterruptOfBeforeALoadIsLeftInThePICs(t *testing.T) {
	vm, _ := shooting(t, 1)
	s := vm.chips
	var clean, now [2][picSize]byte
	read := func(to *[2][picSize]byte) {
		t.Helper()
		if err := s.Save(vm.fd); err != nil {
			t.Fatal(err)
		}
		for i := range to {
			copy(to[i][:], s.chip[i].Chip[:])
		}
	}
	read(&clean)
	was := *s
	const irr, cascade = 1, 1 << 2
	if err := vm.SetIRQ(11, true); err != nil {
		t.Fatal(err)
	}
	if read(&now); now[0][irr]&cascade == 0 || now[1][irr] == 0 {
		t.Fatalf("interrupt 11 does not wait: % x", now)
	}
	*s = was
	if err := s.Restore(vm.fd); err != nil {
		t.Fatal(err)
	}
	if read(&now); now != clean {
		t.Errorf("the PICs are % x, want % x", now, clean)
	}
}
