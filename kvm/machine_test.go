//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a VM that runs the flat test program, and what its device saw.
type machine struct {
	*kvm.VM
	t      testing.TB
	params guest.Params

	mu     sync.Mutex
	frames [][]guest.Frame // by vCPU
	busy   int             // status reads that find the device busy before each frame
	polls  []int           // by vCPU: status reads since the last frame
	reads  []uint64        // by vCPU: status reads in all
	limit  uint64          // the device takes no frame after this round's; 0: all
	err    error
	// ensure is called before the device touches a page of memory; nil: all is there.
	ensure func(addr uint64) error

	devices *vmstate.Registry

	stop context.CancelFunc
	done sync.WaitGroup
}

// newMachine creates a VM with the test program in it, not running.
func newMachine(t testing.TB, p guest.Params, cfg kvm.Config) *machine {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	cfg.VCPUs, cfg.Memory = max(p.VCPUs, 1), p.MemSize()
	vm, err := kvm.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{VM: vm, t: t, params: p}
	t.Cleanup(func() {
		m.halt()
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	n := len(vm.VCPUs())
	m.frames, m.polls, m.reads = make([][]guest.Frame, n), make([]int, n), make([]uint64, n)
	return m
}

// load puts the program into memory and the vCPUs at its entry.
func (m *machine) load() {
	m.t.Helper()
	if err := guest.Load(m.Memory(), m.params); err != nil {
		m.t.Fatal(err)
	}
	m.MarkDirty(0, uint64(len(m.Memory())))
	for i, v := range m.VCPUs() {
		regs, err := v.Regs()
		if err != nil {
			m.t.Fatal(err)
		}
		sregs, err := v.Sregs()
		if err != nil {
			m.t.Fatal(err)
		}
		guest.SetBootState(i, &regs, &sregs)
		if err := errors.Join(v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()); err != nil {
			m.t.Fatal(err)
		}
	}
}

// io is the device that the program writes its frames to.
func (m *machine) io(v int, x *kvm.IO) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case x.In && x.Port == guest.PortStatus && x.Size == 1 && x.Count == 1:
		x.Data[0] = 0
		if m.polls[v] >= m.busy && (m.limit == 0 || m.last(v) < m.limit) {
			x.Data[0] = guest.StatusReady
		}
		m.polls[v]++
		m.reads[v]++
		return nil
	case !x.In && x.Port == guest.PortEmit && x.Size == 4 && x.Count == 1:
		addr := uint64(x.Data[0]) | uint64(x.Data[1])<<8 | uint64(x.Data[2])<<16 | uint64(x.Data[3])<<24
		if m.ensure != nil {
			if err := m.ensure(addr); err != nil {
				return err
			}
		}
		b, err := guest.Emitted(m.Memory(), addr)
		if err != nil {
			return err
		}
		f, err := guest.ParseFrame(b)
		if err != nil {
			return err
		}
		if polls, err := guest.Polls(m.Memory(), v); err != nil || polls != m.reads[v] {
			return fmt.Errorf("round %d: the guest has read the port %d times, the device answered %d times (%v)", f.N, polls, m.reads[v], err)
		}
		m.polls[v] = 0
		m.frames[v] = append(m.frames[v], f)
		return nil
	}
	return errors.New("unexpected port access")
}

// last returns the round of a vCPU's last frame; mu is held.
func (m *machine) last(v int) uint64 {
	if n := len(m.frames[v]); n > 0 {
		return m.frames[v][n-1].N
	}
	return 0
}

// await waits until every vCPU has emitted the frame of round n.
func (m *machine) await(n uint64) {
	m.t.Helper()
	for {
		m.mu.Lock()
		least, err := n, m.err
		for v := range m.frames {
			least = min(least, m.last(v))
		}
		m.mu.Unlock()
		if err != nil {
			m.t.Fatal(err)
		}
		if least >= n {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// awaitLimit waits until every vCPU waits to emit the frame after the limit.
func (m *machine) awaitLimit() {
	m.t.Helper()
	m.await(m.limit)
	for v := 0; v < len(m.frames); {
		m.mu.Lock()
		waits := m.polls[v] > 0
		m.mu.Unlock()
		if waits {
			v++
		} else {
			time.Sleep(100 * time.Microsecond)
		}
	}
}

func (m *machine) pause() {
	m.t.Helper()
	if err := m.Pause(context.Background()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) resume() {
	m.t.Helper()
	if err := m.Resume(context.Background()); err != nil {
		m.t.Fatal(err)
	}
}

// registry returns the VM's devices.
func (m *machine) registry() *vmstate.Registry {
	m.t.Helper()
	if m.devices == nil {
		m.devices = &vmstate.Registry{}
		if err := m.Register(m.devices); err != nil {
			m.t.Fatal(err)
		}
	}
	return m.devices
}

// save returns the device state of the stopped VM, and the device's.
func (m *machine) save() saved {
	m.t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := m.registry().SaveDevices(w); err != nil {
		m.t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := saved{state: b.Bytes(), polls: slices.Clone(m.polls), reads: slices.Clone(m.reads)}
	for v := range m.frames {
		s.rounds = append(s.rounds, m.last(v))
	}
	return s
}

// restore loads what save has returned. The frames after the saved round are void.
func (m *machine) restore(s saved) {
	m.t.Helper()
	reg := m.registry()
	reg.NewSession()
	if err := reg.LoadDevices(s.state, nil); err != nil {
		m.t.Fatal(err)
	}
	if err := reg.Commit(); err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.polls, s.polls)
	copy(m.reads, s.reads)
	for v := range m.frames {
		for m.last(v) > s.rounds[v] {
			m.frames[v] = m.frames[v][:len(m.frames[v])-1]
		}
	}
}

// saved is a VM's state without its memory.
type saved struct {
	state  []byte
	polls  []int
	reads  []uint64
	rounds []uint64
}

// dirty returns the pages dirtied since the last call, as a bitmap.
func (m *machine) dirty() []uint64 {
	m.t.Helper()
	bitmap := make([]uint64, (len(m.Memory())/kvm.PageSize+63)/64)
	if err := m.ReadDirty(kvm.RAMBlock, bitmap); err != nil {
		m.t.Fatal(err)
	}
	return bitmap
}

// copyPages copies the pages of the bitmap and returns how many.
func copyPages(to, from []byte, bitmap []uint64) (n int) {
	for i, w := range bitmap {
		for ; w != 0; w &= w - 1 {
			p := (i*64 + bits.TrailingZeros64(w)) * kvm.PageSize
			copy(to[p:p+kvm.PageSize], from[p:])
			n++
		}
	}
	return n
}

// wantSame fails unless two memories are equal.
func wantSame(t testing.TB, why string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for p := 0; p < len(got); p += kvm.PageSize {
		if !bytes.Equal(got[p:p+kvm.PageSize], want[p:p+kvm.PageSize]) {
			t.Errorf("%s: page %#x differs", why, p)
		}
	}
	t.FailNow()
}

// check compares a halted VM with the model: all frames since round 1, the ring,
// and the working set. The device must have stopped at its limit, so that each
// vCPU has done one round more and waits to emit it. before has the frames that
// were emitted elsewhere.
func (m *machine) check(before ...[][]guest.Frame) {
	m.t.Helper()
	for v := range m.frames {
		model, err := guest.NewModel(m.params, v)
		if err != nil {
			m.t.Fatal(err)
		}
		var frames []guest.Frame
		for _, b := range before {
			frames = append(frames, b[v]...)
		}
		frames = append(frames, m.frames[v]...)
		b, err := guest.Emitted(m.Memory(), guest.FrameBase+uint64(v)*guest.PageSize)
		if err != nil {
			m.t.Fatal(err)
		}
		held, err := guest.ParseFrame(b)
		if err != nil {
			m.t.Fatal(err)
		}
		ring, err := guest.ReadRing(m.Memory(), v)
		if err != nil {
			m.t.Fatal(err)
		}
		frames = append(frames, held)
		if len(ring) != len(frames) {
			m.t.Fatalf("vCPU %d: %d rounds in the ring, %d frames", v, len(ring), len(frames))
		}
		for i, f := range frames {
			n, h := model.Next(f.T)
			if f.N != n || f.H != h || f.VCPU != v || (f.T != 0) != model.TakesTSC(n) {
				m.t.Fatalf("vCPU %d: frame %d is %+v, model says round %d, hash %#x", v, i, f, n, h)
			}
			if ring[i] != (guest.Entry{N: n, H: h}) {
				m.t.Fatalf("vCPU %d: ring entry %d is %+v, model says round %d, hash %#x", v, i, ring[i], n, h)
			}
		}
		set := guest.RingBase + len(m.frames)*guest.RingEntries*16 + v*m.params.Pages*guest.PageSize
		for i := range m.params.Pages * guest.PageSize / 8 {
			if w := binary.LittleEndian.Uint64(m.Memory()[set+i*8:]); w != model.Word(i) {
				m.t.Fatalf("vCPU %d: word %d of the working set is %#x, model says %#x", v, i, w, model.Word(i))
			}
		}
	}
}

// start runs every vCPU on a goroutine of its own until halt.
func (m *machine) start() {
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	for i, v := range m.VCPUs() {
		m.done.Add(1)
		go func() {
			defer m.done.Done()
			err := v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(x *kvm.IO) error { return m.io(i, x) }}))
			if !errors.Is(err, context.Canceled) {
				m.mu.Lock()
				m.err = errors.Join(m.err, err)
				m.mu.Unlock()
			}
		}()
	}
}

func (m *machine) halt() {
	if m.stop != nil {
		m.stop()
		m.done.Wait()
		m.stop = nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		m.t.Error(m.err)
		m.err = nil
	}
}
