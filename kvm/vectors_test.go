//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// vectorGuest is a VM whose program, at CPL3, loads vector and mask registers from memory, once, and then
// stores them again and again, each time with an exit.
type vectorGuest struct {
	*VM
	reg   *vmstate.Registry
	exits chan struct{}
	end   context.CancelFunc
	done  chan error
}

const (
	vectorTables, vectorProgram = 0x1000, 0x5000 // four levels of tables
	vectorFrom, vectorTo        = 0x6000, 0x7000
	vectorTSS, vectorEnd        = 0x8000, 0x9000
	vectorDevice, vectorNowhere = 0xb000, 0xe0000000
	vectorBytes                 = 4*64 + 8
)

// vectorCode loads ZMM0, ZMM15, ZMM16, ZMM31 and K7 from RBX, then stores them at RDI and writes at RCX, for
// ever.
var vectorCode = []byte{
	0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x03, // VMOVDQU64 ZMM0, [RBX]
	0x62, 0x71, 0xfe, 0x48, 0x6f, 0x7b, 0x01, // VMOVDQU64 ZMM15, [RBX+64]
	0x62, 0xe1, 0xfe, 0x48, 0x6f, 0x43, 0x02, // VMOVDQU64 ZMM16, [RBX+128]
	0x62, 0x61, 0xfe, 0x48, 0x6f, 0x7b, 0x03, // VMOVDQU64 ZMM31, [RBX+192]
	0xc4, 0xe1, 0xf8, 0x90, 0xbb, 0x00, 0x01, 0x00, 0x00, // KMOVQ K7, [RBX+256]
	0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x07, // VMOVDQU64 [RDI], ZMM0
	0x62, 0x71, 0xfe, 0x48, 0x7f, 0x7f, 0x01,
	0x62, 0xe1, 0xfe, 0x48, 0x7f, 0x47, 0x02,
	0x62, 0x61, 0xfe, 0x48, 0x7f, 0x7f, 0x03,
	0xc4, 0xe1, 0xf8, 0x91, 0xbf, 0x00, 0x01, 0x00, 0x00, // KMOVQ [RDI+256], K7
	0x89, 0x01, // MOV [RCX], EAX
	0xeb, 0xd8, // JMP to the first store
}

func newVectorGuest(t *testing.T) *vectorGuest {
	t.Helper()
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	g := &vectorGuest{VM: vm, reg: &vmstate.Registry{}, exits: make(chan struct{}, 1), done: make(chan error, 1)}
	if err := errors.Join(vm.Register(g.reg), vm.Pause(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	return g
}

func (g *vectorGuest) load(pattern []byte) error {
	const table, page = 0x27, 0x67
	mem, le := g.Memory(), binary.LittleEndian
	for i := range uint64(3) {
		le.PutUint64(mem[vectorTables+i*PageSize:], vectorTables+(i+1)*PageSize|table)
	}
	for at, to := range map[uint64]uint64{vectorProgram: vectorProgram, vectorFrom: vectorFrom, vectorTo: vectorTo, vectorDevice: vectorNowhere} {
		le.PutUint64(mem[vectorTables+3*PageSize+at/PageSize*8:], to|page)
	}
	copy(mem[vectorProgram:], vectorCode)
	copy(mem[vectorFrom:], pattern)
	v := g.vcpus[0]
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	data := gokvm.Segment{Limit: 0xffffffff, Selector: 0x23, Typ: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
	s.CS = gokvm.Segment{Limit: 0xffffffff, Selector: 0x2b, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = gokvm.Segment{Base: vectorTSS, Limit: 103, Selector: 0x30, Typ: 11, Present: 1}
	s.LDT = gokvm.Segment{Unusable: 1}
	s.CR0, s.CR3, s.CR4, s.EFER = cr0PE|1<<4|1<<5|cr0PG, vectorTables, cr4PAE|1<<9|1<<10, eferLME|eferLMA
	const osxsave = 1 << 18
	s.CR4 |= osxsave
	if v.SetSregs(s) != nil { // this KVM tells no guest of XSAVE
		s.CR4 &^= osxsave
		if err := v.SetSregs(s); err != nil {
			return err
		}
	}
	if err := v.SetRegs(gokvm.Regs{RIP: vectorProgram, RBX: vectorFrom, RDI: vectorTo, RCX: vectorDevice, RFLAGS: 2}); err != nil {
		return err
	}
	return v.with(func(fd int) error {
		var x gokvm.XCRS
		if _, err := ioctl(fd, "KVM_GET_XCRS", kvmGetXCRS, unsafe.Pointer(&x)); err != nil {
			return err
		}
		x.Registers[0].Value |= 0xe7
		_, err := ioctl(fd, "KVM_SET_XCRS", kvmSetXCRS, unsafe.Pointer(&x))
		return err
	})
}

func (g *vectorGuest) start() {
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	v := g.vcpus[0]
	go func() {
		g.done <- v.Run(ctx, v.Dispatch(Handler{MMIO: func(*MMIO) error {
			select {
			case g.exits <- struct{}{}:
			default:
			}
			return nil
		}}))
	}()
}

func (g *vectorGuest) halt() error {
	g.end()
	if err := <-g.done; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// rounds waits for exits, and fails with the error of Run if that ends.
func (g *vectorGuest) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-g.exits:
		case err := <-g.done:
			g.done <- err
			t.Fatal(err)
		}
	}
}

// The registers of AVX-512 that a running guest has are the same in another VM, and after a roll-back of that VM
// to them from others.
func TestAGuestsVectorRegistersAreExactElsewhereAndAfterARollback(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	patterns := make([][]byte, 2)
	for i := range patterns {
		for j := range vectorBytes {
			patterns[i] = append(patterns[i], byte(j*7+11+100*i))
		}
	}
	a, b := newVectorGuest(t), newVectorGuest(t)
	var states [2][]byte
	for i, g := range []*vectorGuest{a, b} {
		if err := g.load(patterns[i]); err != nil {
			t.Skip("this KVM gives a guest no AVX-512: ", err)
		}
		g.start()
		if err := g.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.rounds(t, 20)
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		states[i] = bytes.Clone(encode(t, g.reg))
	}
	for i, from := range []int{0, 1, 0, 0, 1} {
		if err := errors.Join(b.reg.LoadDevices(states[from], nil), b.reg.Commit()); err != nil {
			t.Fatal(err)
		}
		clear(b.Memory()[vectorFrom:][:vectorBytes])
		clear(b.Memory()[vectorTo:][:vectorBytes])
		if err := b.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.rounds(t, 20)
		if err := b.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := b.Memory()[vectorTo:][:vectorBytes]; !bytes.Equal(got, patterns[from]) {
			t.Errorf("load %d: the guest has %x, want %x", i, got, patterns[from])
		}
	}
	if err := errors.Join(a.halt(), b.halt()); err != nil {
		t.Fatal(err)
	}
}
