package device

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// snapshot is a device whose section is written later than it is saved.
type snapshot struct{ State }

func (s snapshot) PreSave() error  { s.Save(); return nil }
func (s snapshot) Snapshots() bool { return true }

// What was saved is what a section has, whatever the guest does to the device before the
// section is written.
func TestASectionIsOfTheMomentOfTheSave(t *testing.T) {
	n := newNetRig(t)
	bus, _ := newBus()
	rig := newBlkRig(t, 64<<10)
	pm := NewPM(time.Now)
	for name, d := range map[string]struct {
		State
		ports Ports
		count uint16
	}{
		"serial": {newCom(t).Serial, nil, SerialPorts}, "pci": {bus, bus, 8}, "cmos": {NewCMOS(1<<30, time.Now), nil, 2},
		"pm": {pm, PMControl{pm}, PMControlPorts}, "disk": {rig.blk, rig.blk, VirtioPorts}, "card": {n.nic, n.nic, VirtioPorts},
	} {
		ports := d.ports
		if ports == nil {
			ports = d.State.(Ports)
		}
		r := rand.New(rand.NewPCG(1, 2))
		poke := func() {
			for range 300 {
				p := make([]byte, 1<<r.IntN(3))
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				off := uint16(r.IntN(int(d.count)))
				if off == regNotify && d.count == VirtioPorts {
					continue // its rings are anywhere
				}
				_ = ports.Out(off, p) // it may ask for a reset
				ports.In(uint16(r.IntN(int(d.count))), p)
			}
		}
		poke()
		var reg vmstate.Registry
		must(t, reg.Register(entry(d.State), snapshot{d.State}))
		section := func(write func(*qemufile.Writer) error) []byte {
			var b bytes.Buffer
			w := qemufile.NewWriter(&b)
			must(t, write(w))
			must(t, w.Flush())
			return b.Bytes()
		}
		must(t, reg.CaptureDevices())
		// The timer goes on by itself, so that what was saved cannot be saved again.
		want := section(func(w *qemufile.Writer) error { return writeOnly(w, d.State) })
		poke()
		if got := section(reg.SaveCaptured); !bytes.Equal(got, want) {
			t.Errorf("%s: the section is of later\n%x\n%x", name, got, want)
		}
		must(t, reg.CaptureDevices())
		if got := section(reg.SaveCaptured); bytes.Equal(got, want) {
			t.Errorf("%s: nothing that was done to it is in its state", name)
		}
	}
}

// writeOnly writes the section of what was saved before.
func writeOnly(w *qemufile.Writer, s State) error {
	var reg vmstate.Registry
	if err := reg.Register(entry(s), s); err != nil {
		return err
	}
	return reg.SaveDevices(w)
}
