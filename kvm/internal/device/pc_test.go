package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// bus is a PCI bus with a bridge, an empty slot, and a device of 256 ports.
func newBus() (*PCI, *resetter) {
	dev := &resetter{}
	return NewPCI(
		FunctionConfig{Vendor: 0x8086, Device: 0x0d57, Class: 0x060000},
		FunctionConfig{},
		FunctionConfig{Vendor: 0x1af4, Device: 0x1001, Class: 0x018000, SubsystemVendor: 0x1af4, Subsystem: 2,
			Ports: dev, Base: 0x6300, Size: 0x100, InterruptLine: 10},
	), dev
}

// resetter is a device that answers every write with ErrReset: a test sees by it that a port
// leads there.
type resetter struct{}

func (*resetter) In(_ uint16, p []byte)       { ones(p) }
func (*resetter) Out(uint16, []byte) error    { return ErrReset }
func (p *PCI) config(slot, reg uint32) uint32 { return p.read(0x80000000|slot<<11|reg, 4) }

func (p *PCI) read(address uint32, n int) uint32 {
	var a, v [4]byte
	binary.LittleEndian.PutUint32(a[:], address&^3)
	p.Out(0, a[:])
	p.In(4+uint16(address&3), v[:n])
	return binary.LittleEndian.Uint32(v[:])
}

func (p *PCI) write(slot, reg, v uint32, n int) {
	var a, b [4]byte
	binary.LittleEndian.PutUint32(a[:], 0x80000000|slot<<11|reg&^3)
	binary.LittleEndian.PutUint32(b[:], v)
	p.Out(0, a[:])
	p.Out(4+uint16(reg&3), b[:n])
}

func TestADriverFindsItsFunctionAndItsPorts(t *testing.T) {
	p, dev := newBus()
	if v := p.config(0, 0); v != 0x0d578086 {
		t.Errorf("slot 0 is %#x", v)
	}
	for _, slot := range []uint32{1, 3, 31} {
		if v := p.config(slot, 0); v != 1<<32-1 {
			t.Errorf("slot %d is %#x, it is empty", slot, v)
		}
	}
	if p.config(2, 0) != 0x10011af4 || p.config(2, 8) != 0x01800000 || p.config(2, 0x2c) != 0x00021af4 || p.config(2, 0x3c) != 0x010a {
		t.Errorf("slot 2 is %#x %#x %#x %#x", p.config(2, 0), p.config(2, 8), p.config(2, 0x2c), p.config(2, 0x3c))
	}
	for name, address := range map[string]uint32{"no enable bit": 2 << 11, "another bus": 0x80010000, "another function": 0x80000100 | 2<<11} {
		if v := p.read(address, 4); v != 1<<32-1 {
			t.Errorf("%s: %#x", name, v)
		}
	}
	if v := p.config(2, 0xfc); v != 0 { // gokvm's own would go beyond its 64 bytes
		t.Errorf("the last register is %#x", v)
	}
	for at, want := range []byte{0xf4, 0x1a, 0x01, 0x10} {
		if v := p.read(0x80000000|2<<11|uint32(at), 1); v != uint32(want) {
			t.Errorf("byte %d is %#x", at, v)
		}
	}
	if v := p.read(0x80000000|2<<11|2, 2); v != 0x1001 {
		t.Errorf("the device is %#x", v)
	}
	if got, off := p.Find(0x63ff); got != dev || off != 0xff {
		t.Error("the ports are not where they are said to be")
	}
	if got, _ := p.Find(0x6400); got != nil {
		t.Error("a port too many")
	}

	p.write(2, pciBAR0, 1<<32-1, 4)
	if v := p.config(2, pciBAR0); v != 0xffffff01 {
		t.Errorf("BAR 0 says %#x of its size", v)
	}
	if got, _ := p.Find(0x6300); got != nil {
		t.Error("the ports are at their old place")
	}
	p.write(2, pciBAR0, 0xc101, 4)
	if got, off := p.Find(0xc105); got != dev || off != 5 {
		t.Error("the ports did not move")
	}
	p.write(2, pciCommand, 0, 1)
	if got, _ := p.Find(0xc105); got != nil {
		t.Error("the ports are there although the driver switched them off")
	}
	p.write(2, pciCommand, pciCommandIO, 2)
	p.write(2, 0, 0, 4)
	p.write(2, pciInterruptLine, 0x1105, 2)
	if p.config(2, 0) != 0x10011af4 || p.config(2, 0x3c) != 0x0105 {
		t.Error("what cannot be written was written, or the other way round")
	}
	p.write(1, 0, 0, 4)
	if v := p.config(1, 0); v != 1<<32-1 {
		t.Errorf("the empty slot is %#x after a write", v)
	}
}

func TestWhereADriverHasPutThePortsIsState(t *testing.T) {
	p, _ := newBus()
	p.write(2, pciBAR0, 0xc101, 4)
	twin, dev := newBus()
	must(t, load(twin, stream(t, p)))
	if got, _ := twin.Find(0xc105); got != dev {
		t.Error("the twin's ports are elsewhere")
	}
	var a [4]byte
	twin.In(0, a[:])
	if binary.LittleEndian.Uint32(a[:]) != 0x80000000|2<<11|pciBAR0 {
		t.Errorf("the address register is %x", a)
	}
	other := NewPCI(FunctionConfig{Vendor: 1, Device: 1}, FunctionConfig{}, FunctionConfig{})
	if err := load(other, stream(t, p)); !errors.Is(err, vmstate.ErrValue) {
		t.Error("state of another bus is taken:", err)
	}
	if err := load(NewPCI(), stream(t, p)); !errors.Is(err, vmstate.ErrValue) {
		t.Error("state of a larger bus is taken:", err)
	}
}

// A driver that finds that it can keep a device from interrupting would not look at the interrupts that come all
// the same. Of a state that was saved when it could set the bit, the rest is taken.
func TestADriverIsNotToldThatItCanSwitchAnInterruptLineOff(t *testing.T) {
	p, _ := newBus()
	p.write(2, pciCommand, 0xffff, 2)
	if v := p.config(2, pciCommand) & 0xffff; v != pciCommandIO|pciCommandMemory|pciCommandMaster {
		t.Errorf("the command register is %#x", v)
	}
	state := stream(t, p)
	p.functions[2].config[pciCommand+1] = pciCommandInterrupt >> 8
	old := stream(t, p)
	if bytes.Equal(old, state) {
		t.Fatal("the bit is not in the state")
	}
	twin, _ := newBus()
	must(t, load(twin, old))
	if got := stream(t, twin); !bytes.Equal(got, state) {
		t.Error("the bit has been taken, or more than it has been left")
	}
}

func TestTheClockIsTheHosts(t *testing.T) {
	now := time.Date(2031, 12, 29, 23, 58, 7, 0, time.FixedZone("somewhere", 3600))
	c := NewCMOS(192<<20, func() time.Time { return now })
	read := func(index byte) byte {
		c.Out(0, []byte{index | 0x80}) // the top bit is not the index's
		p := []byte{0}
		c.In(1, p)
		return p[0]
	}
	for index, want := range map[byte]byte{
		0: 0x07, 2: 0x58, 4: 0x22, 6: 2, 7: 0x29, 8: 0x12, 9: 0x31, Century: 0x20,
		0x0a: 0x26, 0x0b: 0x02, 0x0d: 0x80, 0x34: 0x00, 0x35: 0x0b,
	} {
		if got := read(index); got != want {
			t.Errorf("index %#x is %#x, want %#x", index, got, want)
		}
	}
	read(0x40)
	c.Out(1, []byte{0x99})
	twin := NewCMOS(192<<20, time.Now)
	must(t, load(twin, stream(t, c)))
	p := []byte{0}
	twin.In(1, p) // the index, too
	if p[0] != 0x99 {
		t.Errorf("the twin's memory has %#x", p[0])
	}
	wide := []byte{1, 2}
	twin.In(1, wide)
	twin.In(0, p)
	if !bytes.Equal(wide, []byte{0xff, 0xff}) || p[0] != 0xff {
		t.Error("a port that cannot be read is", wide, p)
	}
}

// A driver that looks at the clock just before midnight would otherwise read the hours of one
// day and the date of the next.
func TestTheClockSaysWhenItsRegistersAreAboutToChange(t *testing.T) {
	midnight := time.Date(2032, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		before time.Duration
		busy   bool
	}{
		{time.Second, false}, {3 * time.Millisecond, false}, {cmosUpdate + 1, false},
		{cmosUpdate, true}, {time.Millisecond, true}, {1, true}, {0, false}, {-time.Millisecond, false},
	} {
		clock := NewCMOS(1<<20, func() time.Time { return midnight.Add(-c.before) })
		clock.Out(0, []byte{0x0a})
		p := []byte{0}
		clock.In(1, p)
		if busy := p[0]&cmosUpdating != 0; busy != c.busy || p[0]&^cmosUpdating != 0x26 {
			t.Errorf("%v before it register A is %#x", c.before, p[0])
		}
	}
}

// gokvm's own timer overflows after 43 minutes.
func TestTheTimerNeverStepsBack(t *testing.T) {
	now := time.Unix(1000, 0)
	pm := NewPM(func() time.Time { return now })
	read := func(pm *PM) (v uint32) {
		p := make([]byte, 4)
		PMTimer{pm}.In(0, p)
		return binary.LittleEndian.Uint32(p)
	}
	if read(pm) != 0 {
		t.Error("it does not start at 0")
	}
	now = now.Add(time.Second)
	if v := read(pm); v != pmTimerHz {
		t.Errorf("%d after a second", v)
	}
	for range 100 {
		now = now.Add(10 * 24 * time.Hour)
		seconds := uint64(now.Sub(time.Unix(1000, 0)) / time.Second)
		if v := read(pm); v != uint32(seconds*pmTimerHz) {
			t.Fatalf("%d after %d seconds", v, seconds)
		}
	}
	before := read(pm)
	saved := stream(t, pm)
	elsewhere := time.Unix(5, 0) // a host whose clock says something else
	twin := NewPM(func() time.Time { return elsewhere })
	must(t, load(twin, saved))
	if v := read(twin); v != before {
		t.Errorf("%d there after %d here", v, before)
	}
	elsewhere = elsewhere.Add(time.Hour)
	must(t, load(twin, saved)) // rolled back
	if v := read(twin); v != before {
		t.Errorf("%d after %d, when the guest was rolled back", v, before)
	}
	for at := range uint16(4) {
		p := []byte{0}
		PMTimer{twin}.In(at, p)
		if p[0] != byte(before>>(8*at)) {
			t.Errorf("byte %d of %#x is %#x", at, before, p[0])
		}
	}
	elsewhere = elsewhere.Add(-time.Hour)
	if v := read(twin); v != before {
		t.Errorf("%d after %d, when the host's clock stepped back", v, before)
	}
}

func TestTheGuestSwitchesItselfOff(t *testing.T) {
	c := PMControl{NewPM(time.Now)}
	read := func(off uint16) uint16 {
		p := make([]byte, 2)
		c.In(off, p)
		return binary.LittleEndian.Uint16(p)
	}
	if read(4)&sciEnabled == 0 {
		t.Error("the guest would have to ask for ACPI")
	}
	must(t, c.Out(2, []byte{0x20, 0x01}))
	if read(0) != 0 || read(2) != 0x120 {
		t.Errorf("status %#x, enable %#x", read(0), read(2))
	}
	must(t, c.Out(4, []byte{0, SleepOff << 2})) // the type alone
	must(t, c.Out(4, []byte{0, 0x20 | 1<<2}))   // another type
	if v := read(4); v != 1<<10|sciEnabled {
		t.Errorf("control is %#x: the order to sleep is not to be read", v)
	}
	must(t, c.Out(4, []byte{0x20 | SleepOff<<2})) // a byte
	if err := c.Out(4, []byte{1, 0x20 | SleepOff<<2}); !errors.Is(err, ErrPowerOff) {
		t.Error("it stays on:", err)
	}
}

// Whatever is in a section, loading it fails or gives a device that works.
func FuzzState(f *testing.F) {
	devices := func(t testing.TB) []State {
		n := newNetRig(t)
		p, _ := newBus()
		return []State{newCom(t).Serial, p, NewCMOS(1<<30, time.Now), NewPM(time.Now), newBlkRig(t, 64<<10).blk, n.nic, newRNGRig(t, "chance").rng, newOffloadRig(t, allFeatures).nic}
	}
	for i, d := range devices(f) {
		f.Add(uint8(i), stream(f, d))
	}
	f.Fuzz(func(t *testing.T, which uint8, section []byte) {
		list := devices(t)
		d := list[int(which)%len(list)]
		if load(d, section) != nil {
			return
		}
		switch d := d.(type) {
		case *Serial:
			d.Kick()
			for range serialInput + 2 {
				d.In(uartData, []byte{0})
			}
		case *PCI:
			d.Find(0x6300)
		case *CMOS:
			for i := range 256 {
				must(t, d.Out(0, []byte{byte(i)}))
				d.In(1, []byte{0})
			}
		case *PM:
			PMTimer{d}.In(0, make([]byte, 4))
			PMControl{d}.In(0, make([]byte, 4))
		case *Blk:
			for range 100 {
				d.step()
			}
		case *Net:
			open := NewGate()
			open.Open()
			for _, n := range []int{d.vnet, d.vnet + MinFrame, d.vnet + d.most()} { // before what waits is delivered, and after
				_ = d.Receive(open, make([]byte, n)) // it may be full, or no frame
			}
			d.Kick()
			for range 100 {
				d.step()
			}
		case *RNG:
			for range 100 {
				d.step()
			}
		}
		stream(t, d)
	})
}
