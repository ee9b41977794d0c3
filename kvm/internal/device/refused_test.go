package device

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// all returns the devices of a PC, each after some use, by name. Their clocks stand still.
func all(t testing.TB) map[string]State {
	now := func() time.Time { return time.Unix(1e9, 0) }
	com := newCom(t).Serial
	if _, err := com.Input(NewGate(), []byte("typed")); err != nil {
		t.Fatal(err)
	}
	bus, _ := newBus()
	bus.write(2, pciBAR0, 0xc101, 4)
	cmos, pm := NewCMOS(1<<30, now), NewPM(now)
	must(t, errors.Join(cmos.Out(0, []byte{0x44}), cmos.Out(1, []byte{9}), PMControl{pm}.Out(2, []byte{0x20, 1})))
	disk := newBlkRig(t, 64<<10)
	disk.request(blkSync, 0)
	half := newBlkRig(t, 64<<10)
	half.request(blkOut, 0, part{testData, 4 * SectorSize, false})
	half.blk.servers[0].buf = make([]byte, SectorSize)
	half.blk.step()
	old, card := newNetRig(t), newOffloadRig(t, allFeatures)
	closed := NewGate()
	must(t, errors.Join(old.nic.Receive(closed, frame(1, 60)), card.nic.Receive(closed, make([]byte, 12+60))))
	return map[string]State{
		"serial": com, "pci": bus, "cmos": cmos, "pm": pm, "disk": disk.blk, "disk at work": half.blk, "card": old.nic,
		"card with offloads": card.nic, "randomness": newRNGRig(t, "chance").rng,
	}
}

// wantTyped fails unless an error says by its type where a stream is wrong.
func wantTyped(t *testing.T, err error) {
	t.Helper()
	var section *vmstate.SectionError
	var field *vmstate.FieldError
	var file *qemufile.Error
	if !errors.As(err, &section) && !errors.As(err, &field) && !errors.As(err, &file) {
		t.Errorf("%v (%T)", err, err)
	}
}

// A state that ends too soon, is of another version, or has a value that no device has, is refused
// with an error that says where, and the device is as it was. Each byte of each state is tried.
func TestAStateIsTakenWholeOrNotAtAll(t *testing.T) {
	for name, from := range all(t) {
		t.Run(name, func(t *testing.T) {
			good := stream(t, from)
			to, twin := all(t)[name], all(t)[name]
			before := stream(t, to)
			refused := func(what string, i int, bad []byte) bool {
				t.Helper()
				err := load(to, bad)
				if err == nil {
					return false
				}
				wantTyped(t, err)
				if got := stream(t, to); !bytes.Equal(got, before) {
					t.Fatalf("%s %d: half of it was taken", what, i)
				}
				return true
			}
			for n := range good {
				if !refused("bytes", n, good[:n]) {
					t.Errorf("%d of %d bytes are taken", n, len(good))
				}
			}
			flips := []byte{1, 0x10, 0x80, 0xff}
			if testing.Short() {
				flips = flips[:1]
			}
			for i := range good {
				for _, flip := range flips {
					bad := bytes.Clone(good)
					bad[i] ^= flip
					if refused("byte", i, bad) {
						continue
					}
					// What was taken is a state like others.
					if err := load(twin, stream(t, to)); err != nil {
						t.Errorf("byte %d: what was taken is refused when it is saved again: %v", i, err)
					}
					must(t, load(to, before))
				}
			}
			// Version 0, the next one, and the last there can be.
			entry := entry(to)
			for _, v := range []uint32{0, entry.Version + 1, 1<<32 - 1} {
				var b bytes.Buffer
				w := qemufile.NewWriter(&b)
				var reg vmstate.Registry
				other := entry
				other.Version, other.MinVersion = v, min(v, 1)
				must(t, reg.Register(other, from))
				must(t, reg.SaveDevices(w))
				vmstate.PutEOF(w)
				must(t, w.Flush())
				if err := load(to, b.Bytes()); !errors.Is(err, vmstate.ErrVersion) {
					t.Errorf("version %d: %v", v, err)
				}
			}
			if got := stream(t, to); !bytes.Equal(got, before) {
				t.Error("a state of another version was taken")
			}
			must(t, load(to, good))
		})
	}
}
