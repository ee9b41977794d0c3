package vmstate

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// copied is a device that copies what it saves.
type copied struct {
	value, copy uint32
	no          bool // it does not say so
	err         error
}

func (c *copied) PreSave() error {
	c.copy = c.value
	return c.err
}
func (c *copied) Snapshots() bool { return !c.no }
func (c *copied) VMState(f *Fields) {
	f.Uint32("value", &c.copy)
}

// direct is a device that does not.
type direct struct{ value uint32 }

func (d *direct) VMState(f *Fields) { f.Uint32("value", &d.value) }

// unneeded has nothing to save.
type unneeded struct{ copied }

func (unneeded) Needed() bool { return false }

func capturing(t *testing.T) (*Registry, []*copied, []*direct) {
	t.Helper()
	reg := &Registry{}
	cs := []*copied{{value: 1}, {value: 2}, {value: 3}, {value: 4, no: true}}
	ds := []*direct{{5}, {6}}
	for i, d := range []Device{cs[0], ds[0], cs[1], cs[2], &unneeded{}, cs[3], ds[1]} {
		e := Entry{Name: "device", Instance: uint32(i), Version: 1, MinVersion: 1, Early: i == 1}
		if err := reg.Register(e, d); err != nil {
			t.Fatal(err)
		}
	}
	return reg, cs, ds
}

func devicesBy(t *testing.T, save func(*qemufile.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := errors.Join(save(w), w.Flush()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What is captured is what SaveDevices would have written then, whatever the guest does
// before it is written.
func TestDevicesAreWrittenAsTheyWereCaptured(t *testing.T) {
	for _, early := range []bool{false, true} {
		reg, cs, ds := capturing(t)
		setUp := func() {
			if early {
				devicesBy(t, reg.SaveSetup)
			}
		}
		setUp()
		want := devicesBy(t, reg.SaveDevices)
		lengths, err := reg.VMDesc()
		if err != nil {
			t.Fatal(err)
		}
		setUp()
		if err := reg.CaptureDevices(); err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			c.value += 100
		}
		for _, d := range ds {
			d.value += 100
		}
		if got := devicesBy(t, reg.SaveCaptured); !bytes.Equal(got, want) {
			t.Errorf("early %v: captured\n%x, saved\n%x", early, got, want)
		}
		if got, err := reg.VMDesc(); err != nil || !slices.Equal(got, lengths) {
			t.Errorf("described as %s (%v), want %s", got, err, lengths)
		}
		if reg.SaveCaptured(qemufile.NewWriter(&bytes.Buffer{})) == nil {
			t.Error("written twice")
		}
	}
}

func TestACaptureThatFailsHasNothingToWrite(t *testing.T) {
	for i := range 4 {
		reg, cs, _ := capturing(t)
		if err := reg.CaptureDevices(); err != nil {
			t.Fatal(err)
		}
		cs[i].err = errors.New("refused")
		if err := reg.CaptureDevices(); !errors.Is(err, cs[i].err) {
			t.Errorf("device %d: %v", i, err)
		}
		if reg.SaveCaptured(qemufile.NewWriter(&bytes.Buffer{})) == nil {
			t.Errorf("device %d has failed, and the rest was written", i)
		}
		cs[i].err = nil
		want := devicesBy(t, reg.SaveDevices)
		if err := reg.CaptureDevices(); err != nil {
			t.Fatal(err)
		}
		if got := devicesBy(t, reg.SaveCaptured); !bytes.Equal(got, want) {
			t.Errorf("device %d: after a failure: %x, want %x", i, got, want)
		}
	}
}

func TestCapturingDevicesAllocatesNothing(t *testing.T) {
	reg, _, _ := capturing(t)
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if n := testing.AllocsPerRun(50, func() {
		b.Reset()
		if err := errors.Join(reg.CaptureDevices(), reg.SaveCaptured(w), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
