//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// tabled is a VM whose guest reads a word through a page table of its own.
type tabled struct {
	*VM
	testing.TB
	reg vmstate.Registry
}

// Where the guest has its table, and the two pages that it may show; a word of each is
// the page's address.
const (
	tabledTable = 0x20000
	tabledFirst = 0x21000
	tabledOther = 0x22000
	tabledSees  = 4 << 20
)

func newTabled(t testing.TB) *tabled {
	t.Helper()
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	x := &tabled{VM: vm, TB: t}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	mem, le := vm.Memory(), binary.LittleEndian
	v := vm.VCPUs()[0]
	regs, err := v.Regs()
	sregs, err2 := v.Sregs()
	guest.SetBootState(0, &regs, &sregs)
	regs.RBX, regs.RDX = tabledSees, guest.PortEmit
	err = errors.Join(err, err2, guest.Load(mem, guest.Params{Pages: 8}), v.SetSregs(sregs), v.SetRegs(regs), vm.Register(&x.reg))
	if err != nil {
		t.Fatal(err)
	}
	copy(mem[guest.ProgramBase:], []byte{0x8b, 0x03, 0xef, 0xeb, 0xfb}) // MOV EAX, [RBX]; OUT DX, EAX; JMP
	le.PutUint64(mem[0x3000+tabledSees>>21*8:], tabledTable|0x27)       // in place of a page of 2 MiB
	for _, page := range []uint32{tabledFirst, tabledOther} {
		le.PutUint32(mem[page:], page)
	}
	x.show(tabledFirst)
	return x
}

// show has the table name a page.
func (x *tabled) show(page uint64) {
	binary.LittleEndian.PutUint64(x.Memory()[tabledTable:], page|0x67)
}

// sees runs the guest and returns what it reads.
func (x *tabled) sees() (word uint32) {
	x.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, enough := 0, errors.New("enough")
	v := x.VCPUs()[0]
	err := v.Run(ctx, v.Dispatch(Handler{IO: func(io *IO) error {
		word = binary.LittleEndian.Uint32(io.Data)
		if n++; n == 3 { // the later ones run natively wherever anything does
			return enough
		}
		return nil
	}}))
	if !errors.Is(err, enough) {
		x.Fatal(err)
	}
	return word
}

func (x *tabled) load(state []byte) {
	x.Helper()
	x.reg.NewSession()
	if err := errors.Join(x.reg.LoadDevices(state, nil), x.reg.Commit()); err != nil {
		x.Fatal(err)
	}
}

// A guest that has run is loaded together with other page tables: it goes by these,
// whatever KVM has made of those before.
func TestARolledBackGuestGoesByThePageTablesThatWereLoaded(t *testing.T) {
	x := newTabled(t)
	if got := x.sees(); got != tabledFirst {
		t.Fatalf("the guest sees %#x", got)
	}
	state := encode(t, &x.reg)
	for i := range 4 {
		want := [...]uint32{tabledOther, tabledFirst}[i%2]
		x.show(uint64(want))
		x.load(state)
		if got := x.sees(); got != want {
			t.Fatalf("roll-back %d: the guest sees page %#x, its table says %#x", i, got, want)
		}
	}
}

// Whether a KVM keeps copies of page tables is found out, and they are dropped only where
// it does, and only if the guest has run.
func TestAKVMThatKeepsCopiesOfPageTablesIsFoundOut(t *testing.T) {
	x := newTabled(t)
	kvm, err := openKVM()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kvm)
	p, err := newSpares(kvm, true)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := p.keepShadows()
	if err != nil {
		t.Fatal(err)
	}
	if stale, err := seesStaleTables(kvm); err != nil || stale != kept {
		t.Errorf("a guest sees stale tables: %v (%v), of this KVM was found out %v", stale, err, kept)
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if _, err := p.keepShadows(); !errors.Is(err, ErrClosed) {
		t.Error("of a closed one:", err)
	}

	state := encode(t, &x.reg)
	x.load(state)
	if x.shadows.stale {
		t.Error("there are copies before the guest has run")
	}
	x.sees()
	x.load(state)
	if x.shadows.stale != kept {
		t.Errorf("copies are to be dropped: %v", x.shadows.stale)
	}
	x.sees()
	if x.shadows.stale {
		t.Error("they are to be dropped still")
	}

	// Where the copies are not dropped, the guest reads through the page table that was there
	// before: so the test can tell.
	x.shadows = shadows{known: true}
	for i := range 4 {
		want := [...]uint32{tabledOther, tabledFirst}[i%2]
		x.show(uint64(want))
		x.load(state)
		if got := x.sees(); got != want && !kept {
			t.Errorf("change %d: the guest sees page %#x, its table says %#x", i, got, want)
		}
	}
}

// The slot that is taken away is none of the host's, and its address is one that KVM
// takes.
func TestCopiesAreDroppedBesideTheHostsSlots(t *testing.T) {
	x := newTabled(t)
	last := uint32(capability(x.fd, capMemSlots)) - 1
	for i := range uint32(2) { // upwards, as they are looked at
		page := x.Memory()[i*PageSize:][:PageSize]
		if err := x.AddSlot(Slot{ID: last - 1 + i, Block: fmt.Sprint("other", i), GPA: 1<<51 + uint64(i*PageSize), Mem: page}); err != nil {
			t.Skip("this KVM has no such addresses:", err)
		}
	}
	x.mu.Lock()
	err := x.dropShadows()
	x.mu.Unlock()
	if err != nil || x.shadows.slot != last-2 || x.shadows.place != 1 {
		t.Errorf("slot %d of %d at place %d: %v", x.shadows.slot, last, x.shadows.place, err)
	}
	if err := x.StartDirtyLog(); err != nil { // sets each slot anew
		t.Error(err)
	}
}
