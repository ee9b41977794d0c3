//go:build linux && amd64

package pc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/device"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// empty is a disk of nothing, and an uplink that takes everything.
type empty struct{}

func (empty) Size() int64                            { return 1 << 20 }
func (empty) Sync() error                            { return nil }
func (empty) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (empty) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (empty) WritePacket([]byte) error               { return nil }
func (empty) Room() <-chan struct{}                  { return nil }

// newPC returns a paused machine with a device of each kind, and a registry of them.
func newPC(t *testing.T) (*Machine, *vmstate.Registry) {
	t.Helper()
	m, err := Create(Config{Memory: 1 << 20, Devices: Devices{
		Disks:  []Disk{{Storage: empty{}}},
		NICs:   []NIC{{Uplink: empty{}, MAC: [6]byte{2}}},
		Random: Random{Source: rand.NewChaCha8([32]byte{})},
		OtherPorts: func(port uint16, in bool, p []byte) (bool, error) {
			return port == 0x99, nil
		},
		Console: io.Discard,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	reg := &vmstate.Registry{}
	if err := m.Register(reg); err != nil {
		t.Fatal(err)
	}
	return m, reg
}

// A guest may read and write any port, in any width and beyond the end of a device, put its
// devices' ports anywhere, over each other and over the board's own, and take them away. The
// machine has an answer, and what has become of it another machine takes.
func TestAGuestMayAccessItsPortsAsItLikes(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	m, reg := newPC(t)
	twin, to := newPC(t)
	r := rand.New(rand.NewPCG(3, 4))
	places := []uint16{0x3f8, 0xcf8, 0xcfc, 0x70, 0x608, 0x6100, 0x60, 0xcf9, 0x99}
	for _, p := range m.Places() {
		places = append(places, p.Ports)
	}
	out := func(port uint16, n int, v uint32) {
		x := kvm.IO{Port: port, Size: n, Count: 1 + r.IntN(3)}
		for range x.Count {
			x.Data = append(x.Data, binary.LittleEndian.AppendUint32(nil, v)[:n]...)
		}
		if err := m.bus.io(&x); err != nil && !errors.Is(err, ErrReset) && !errors.Is(err, ErrPowerOff) {
			t.Fatalf("port %#x, %d bytes: %v", port, n, err)
		}
	}
	for range 20 {
		for range 3000 {
			port := places[r.IntN(len(places))] + uint16(r.IntN(0x20))
			if r.IntN(4) == 0 {
				port = uint16(r.Uint32())
			}
			n, v := 1<<r.IntN(3), r.Uint32()>>(8*r.IntN(4))
			switch r.IntN(4) {
			case 0:
				x := kvm.IO{Port: port, Size: n, Count: 2, In: true, Data: make([]byte, 2*n)}
				if err := m.bus.io(&x); err != nil {
					t.Fatal(err)
				}
			case 1: // the configuration of a function that there is
				base := uint32(r.IntN(8)) << 13
				if r.IntN(2) == 0 {
					base = uint32(places[r.IntN(len(places))])
				}
				list := [...]uint32{0x10, 4, 0x3c, uint32(r.IntN(256))}
				reg := list[r.IntN(4)]
				out(0xcf8, 4, 0x80000000|uint32(r.IntN(6))<<11|reg&^3)
				if reg == 4 {
					v |= 1
				} else if reg == 0x10 {
					v = base
				}
				out(0xcfc+uint16(reg&3), n, v)
			default:
				out(port, n, v)
			}
		}
		var b bytes.Buffer
		w := qemufile.NewWriter(&b)
		if err := reg.SaveDevices(w); err != nil {
			t.Fatal(err)
		}
		vmstate.PutEOF(w)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		to.NewSession()
		if err := errors.Join(to.LoadDevices(b.Bytes(), nil), to.Commit()); err != nil {
			t.Fatalf("a state that a guest has brought about is refused: %v", err)
		}
		for port := range 1 << 16 {
			here, off := m.bus.find(uint16(port))
			there, at := twin.bus.find(uint16(port))
			if which(m, here) != which(twin, there) || off != at {
				t.Fatalf("port %#x is another one there", port)
			}
		}
	}
}

// which returns a number for what a port belongs to, the same for the same device of another machine.
func which(m *Machine, p device.Ports) int {
	for i, w := range m.bus.windows {
		if w.ports == p {
			return i + 1
		}
	}
	for i, c := range m.cards {
		if p == c.net {
			return 100 + i
		}
	}
	for i, d := range m.disks {
		if p == d {
			return 200 + i
		}
	}
	if p == m.rng {
		return 300
	}
	return 0
}
