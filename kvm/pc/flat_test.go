//go:build linux && amd64

package pc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/fake"
	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDisk() *fake.Disk { return fake.NewDisk(1 << 20) }

// flat is the flat test program in a Machine. It emits its frames at a port of the
// host's.
type flat struct {
	*pc.Machine
	t      *testing.T
	params guest.Params
	reg    vmstate.Registry
	mem    []byte

	mu     sync.Mutex
	news   sync.Cond       // of frames, or ended
	frames [][]guest.Frame // by vCPU
	ended  bool

	stop context.CancelFunc
	done chan error
}

func devices() pc.Devices {
	return pc.Devices{
		Disks:  []pc.Disk{{Storage: newDisk()}, {Storage: newDisk(), Requests: 4}},
		Random: pc.Random{Source: rand.Reader},
		NICs:   []pc.NIC{{Uplink: fake.Nowhere{}, MAC: [6]byte{2, 0, 0, 0, 0, 1}}, {Uplink: fake.Nowhere{}, MAC: [6]byte{2, 0, 0, 0, 0, 2}}},
	}
}

// newFlat returns a machine with the program at its entry, paused and not running.
func newFlat(t *testing.T, p guest.Params, d pc.Devices) *flat {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	f := &flat{t: t, params: p, frames: make([][]guest.Frame, max(p.VCPUs, 1))}
	f.news.L = &f.mu
	d.OtherPorts = f.port
	var err error
	f.Machine, err = pc.Create(pc.Config{VCPUs: p.VCPUs, Memory: max(2<<20, p.MemSize()), Devices: d})
	must(t, err)
	t.Cleanup(func() {
		f.halt()
		must(t, f.Close())
	})
	must(t, f.Register(&f.reg))
	f.mem = f.Blocks()[0].Host
	must(t, guest.Load(f.mem, p))
	f.VM().MarkDirty(0, uint64(len(f.mem)))
	for i, v := range f.VM().VCPUs() {
		regs, err := v.Regs()
		must(t, err)
		sregs, err := v.Sregs()
		must(t, err)
		guest.SetBootState(i, &regs, &sregs)
		must(t, errors.Join(v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()))
	}
	return f
}

func (f *flat) port(port uint16, in bool, p []byte) (known bool, err error) {
	switch {
	case in && port >= guest.PortStatus && port < guest.PortStatus+8:
		p[0] = guest.StatusReady
		return true, nil
	case in || port != guest.PortEmit || len(p) != 4:
		return false, nil
	}
	b, err := guest.Emitted(f.mem, uint64(binary.LittleEndian.Uint32(p)))
	if err != nil {
		return true, err
	}
	frame, err := guest.ParseFrame(b)
	if err != nil {
		return true, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frames[frame.VCPU] = append(f.frames[frame.VCPU], frame)
	f.news.Broadcast()
	return true, nil
}

// start calls Run on a goroutine of its own until halt.
func (f *flat) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop, f.done = cancel, make(chan error, 1)
	go func() {
		f.done <- f.Run(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended = true
		f.news.Broadcast()
	}()
}

func (f *flat) halt() {
	if f.stop == nil {
		return
	}
	f.stop()
	if err := <-f.done; !errors.Is(err, context.Canceled) {
		f.t.Error("Run:", err)
	}
	f.stop = nil
}

// goOn lets every vCPU emit n more frames.
func (f *flat) goOn(n uint64) {
	f.t.Helper()
	f.mu.Lock()
	want := make([]uint64, len(f.frames))
	for v := range want {
		want[v] = f.round(v) + n
	}
	f.mu.Unlock()
	must(f.t, f.Resume(f.t.Context()))
	f.mu.Lock()
	for v := range want {
		for f.round(v) < want[v] && !f.ended {
			f.news.Wait()
		}
	}
	f.mu.Unlock()
	must(f.t, f.Pause(f.t.Context()))
}

// round returns the round of a vCPU's last frame. mu is held.
func (f *flat) round(v int) uint64 {
	if n := len(f.frames[v]); n > 0 {
		return f.frames[v][n-1].N
	}
	return 0
}

// model checks the frames of all vCPUs against an independent computation.
func (f *flat) model() {
	f.t.Helper()
	for v, frames := range f.frames {
		model, err := guest.NewModel(f.params, v)
		must(f.t, err)
		for i, got := range frames {
			if n, h := model.Next(got.T); got.N != n || got.H != h {
				f.t.Fatalf("vCPU %d: frame %d is %+v, model says round %d, hash %#x", v, i, got, n, h)
			}
		}
	}
}

func (f *flat) save() []byte {
	f.t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	must(f.t, f.reg.SaveDevices(w))
	vmstate.PutEOF(w)
	must(f.t, w.Flush())
	return b.Bytes()
}

func (f *flat) load(state []byte) error {
	f.t.Helper()
	f.reg.NewSession()
	if err := f.reg.LoadDevices(state, nil); err != nil {
		return err
	}
	return f.reg.Commit()
}

func (f *flat) dirty() ram.Bitmap {
	f.t.Helper()
	m := ram.NewBitmap(len(f.mem) / kvm.PageSize)
	must(f.t, f.VM().ReadDirty(kvm.RAMBlock, m))
	return m
}
