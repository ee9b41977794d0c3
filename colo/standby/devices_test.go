package standby

import (
	"errors"
	"math"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A primary that names other devices in each checkpoint does not have a replica grow without a
// bound, and a device that comes and goes is one.
func TestAReplicaKeepsNoMoreDevicesThanItsBound(t *testing.T) {
	g := New(Config{})
	g.img, g.born = new(image), true
	device := func(instance uint32) section {
		return section{Header: vmstate.Header{Name: "dev", Instance: instance}, body: []byte{1}}
	}
	g.cur.sections = []section{device(0), device(1)}
	p, _, err := g.NewReplica(new(vmstate.Registry), ram.SaverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	checkpoint := func() error {
		defer p.Resume(t.Context())
		return p.Pause(t.Context())
	}
	for n := range uint32(2 * moreDevices) {
		g.cur.sections = []section{device(n % 2)}
		if err := checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	if d := p.devices[vmstate.Alias{Name: "dev"}]; d.there || d.body != nil {
		t.Errorf("a device that has gone is kept as %+v", d)
	}
	for n := range uint32(moreDevices) {
		g.cur.sections = []section{device(2 + n)}
		if err := checkpoint(); err != nil {
			t.Fatalf("device %d: %v", 2+n, err)
		}
	}
	g.cur.sections = []section{device(1 << 20)}
	if err := checkpoint(); !errors.Is(err, ErrTooLarge) || len(p.devices) != moreDevices+2 {
		t.Errorf("%d devices, and then %v", len(p.devices), err)
	}
}

// A block may be within what the configuration allows and beyond what a slice can hold, as
// of a guest of 4 GiB on a machine of 32 bits.
func TestMemoryThatNoSliceHoldsIsRefused(t *testing.T) {
	const length = uint64(math.MaxInt) + 1
	img, err := newImage([]ram.BlockInfo{{Name: "ram", Length: length}}, length, length, 0)
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d bytes: %v", length, err)
	}
	if img != nil {
		img.close()
	}
}
