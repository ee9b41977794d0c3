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
