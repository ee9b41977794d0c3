//go:build linux && amd64

package kvm_test

import (
	"errors"
	"math/bits"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// count returns the number of bits set.
func count(bitmap []uint64) (n int) {
	for _, w := range bitmap {
		n += bits.OnesCount64(w)
	}
	return n
}

func TestTheDirtyLogNamesEveryWriteOfTheHostThatItIsTold(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		m := newMachine(t, p, cfg)
		size := uint64(len(m.Memory()))
		if err := m.StartDirtyLog(); err != nil {
			t.Fatal(err)
		}
		m.dirty()
		for _, x := range []struct{ gpa, n, first, last uint64 }{
			{0, 1, 0, 0},
			{4095, 1, 0, 0},
			{4095, 2, 0, 1},
			{63 * 4096, 4096, 63, 63},
			{63 * 4096, 4097, 63, 64},
			{60 * 4096, 200 * 4096, 60, 259},
			{64 * 4096, 64 * 4096, 64, 127},
			{0, size, 0, size/4096 - 1},
			{size - 1, 1 << 40, size/4096 - 1, size/4096 - 1},
			{5, ^uint64(0), 0, size/4096 - 1},
		} {
			m.MarkDirty(x.gpa, x.n)
			got := m.dirty()
			if count(got) != int(x.last-x.first+1) || got[x.first/64]>>(x.first%64)&1 == 0 || got[x.last/64]>>(x.last%64)&1 == 0 {
				t.Errorf("%d bytes at %#x: %#x", x.n, x.gpa, got)
			}
		}
		m.MarkDirty(0, 0)
		m.MarkDirty(size, 4096)
		m.MarkDirty(1<<63, 4096)
		if n := count(m.dirty()); n != 0 {
			t.Errorf("%d pages dirty after nothing was written", n)
		}
	})
}

func TestMarksMadeWhileTheLogIsReadAreNotLost(t *testing.T) {
	m := newMachine(t, guest.Params{Pages: 2048}, kvm.Config{})
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	pages := uint64(len(m.Memory()) / kvm.PageSize)
	m.dirty()
	var marking sync.WaitGroup
	for w := range uint64(2) {
		marking.Add(1)
		go func() {
			defer marking.Done()
			for p := w; p < pages; p += 2 {
				m.MarkDirty(p*kvm.PageSize+1, 2)
			}
		}()
	}
	all := make([]uint64, (pages+63)/64)
	for range 200 {
		if err := m.ReadDirty(kvm.RAMBlock, all); err != nil {
			t.Fatal(err)
		}
	}
	marking.Wait()
	if err := m.ReadDirty(kvm.RAMBlock, all); err != nil {
		t.Fatal(err)
	}
	if n := count(all); n != int(pages) {
		t.Fatalf("%d of %d pages", n, pages)
	}
}

func TestAFullDirtyRingLosesNothing(t *testing.T) {
	p := guest.Params{VCPUs: 2, Pages: 3000, Touch: 3000}
	m := newMachine(t, p, kvm.Config{DirtyRing: 1024})
	m.limit = 3
	m.load()
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	m.dirty()
	image := append([]byte(nil), m.Memory()...)
	m.start()
	m.awaitLimit()
	m.pause()
	if n := copyPages(image, m.Memory(), m.dirty()); n < 6000 {
		t.Errorf("%d pages dirty, want at least both working sets", n)
	}
	wantSame(t, "after one harvest of overfull rings", image, m.Memory())
	m.resume()
	m.halt()
	m.check()
}

func TestALogThatIsOffIsAnError(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		m := newMachine(t, p, cfg)
		bitmap := make([]uint64, len(m.Memory())/kvm.PageSize/64+1)
		if err := m.ReadDirty(kvm.RAMBlock, bitmap); !errors.Is(err, kvm.ErrLogOff) {
			t.Error("before StartDirtyLog:", err)
		}
		for range 2 {
			if err := m.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.ReadDirty("rom", bitmap); err == nil {
			t.Error("a block that does not exist was read")
		}
		if err := m.ReadDirty(kvm.RAMBlock, bitmap[:1]); err == nil {
			t.Error("a bitmap that is too short was taken")
		}
		if err := m.ReadDirty(kvm.RAMBlock, bitmap); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := m.StopDirtyLog(); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.ReadDirty(kvm.RAMBlock, bitmap); !errors.Is(err, kvm.ErrLogOff) {
			t.Error("after StopDirtyLog:", err)
		}
	})
}

func TestTheLogCanBeSwitchedWhileTheGuestRuns(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		m := newMachine(t, p, cfg)
		m.load()
		m.start()
		for round := uint64(0); round < 300; round += 30 {
			m.await(round + 10)
			if err := m.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			m.pause()
			image := append([]byte(nil), m.Memory()...)
			m.dirty()
			m.resume()
			m.await(round + 20)
			m.pause()
			copyPages(image, m.Memory(), m.dirty())
			wantSame(t, "with the log on", image, m.Memory())
			m.resume()
			if err := m.StopDirtyLog(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestABlockMayBeShownBySeveralSlots(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	host, err := kvm.Create(kvm.Config{Memory: kvm.PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for _, s := range []kvm.Slot{
		{ID: 5, Block: "two", GPA: 1 << 20, Mem: mem[:512<<10]},
		{ID: 6, Block: "two", Offset: 512 << 10, GPA: 1 << 32, Mem: mem[512<<10:]},
	} {
		if err := host.AddSlot(s); err != nil {
			t.Fatal(err)
		}
	}
	for why, s := range map[string]kvm.Slot{
		"no memory":          {ID: 7, GPA: 1 << 33},
		"part of a page":     {ID: 7, GPA: 1 << 33, Mem: mem[:100]},
		"address":            {ID: 7, GPA: 1<<33 + 1, Mem: mem[:4096]},
		"offset":             {ID: 7, GPA: 1 << 33, Offset: 4096, Mem: mem[:4096]},
		"slot is there":      {ID: 5, GPA: 1 << 33, Mem: mem[:4096]},
		"overlaps in memory": {ID: 7, GPA: 1 << 20, Mem: mem[:4096]},
	} {
		if err := host.AddSlot(s); err == nil {
			t.Errorf("a slot was taken that is wrong: %s", why)
		}
	}
	if err := host.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	host.MarkDirty(1<<20+4096, 1)
	host.MarkDirty(1<<32+2*4096, 1)
	bitmap := make([]uint64, 4)
	if err := host.ReadDirty("two", bitmap); err != nil {
		t.Fatal(err)
	}
	if bitmap[0] != 1<<1 || bitmap[2] != 1<<2 || bitmap[1]|bitmap[3] != 0 {
		t.Fatalf("%#x", bitmap)
	}
}

func TestReadingTheLogAllocatesNothing(t *testing.T) {
	for _, ring := range []int{0, 1024} {
		m := newMachine(t, guest.Params{}, kvm.Config{DirtyRing: ring})
		if err := m.StartDirtyLog(); err != nil {
			t.Fatal(err)
		}
		bitmap := m.dirty()
		if n := testing.AllocsPerRun(100, func() {
			m.MarkDirty(4096, 8192)
			if err := m.ReadDirty(kvm.RAMBlock, bitmap); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("ring of %d: %v allocations", ring, n)
		}
	}
}

// handles returns how many descriptors and KVM mappings the process has.
func handles(t *testing.T) (descriptors, mappings int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries), strings.Count(string(maps), "kvm")
}

func TestCloseGivesEverythingBack(t *testing.T) {
	newMachine(t, guest.Params{}, kvm.Config{}) // what the runtime opens for itself
	time.AfterFunc(time.Hour, func() {}).Stop() // and for its timers
	fds, maps := handles(t)
	for i := range 4 { // a host that is busy takes its time to make a VM and to end it
		vm, err := kvm.Create(kvm.Config{VCPUs: 2, Memory: 4 << 20, DirtyRing: 1024 * (i % 2)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := vm.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := vm.Pause(t.Context()); !errors.Is(err, kvm.ErrClosed) {
			t.Error("pause after close:", err)
		}
		if err := vm.Resume(t.Context()); !errors.Is(err, kvm.ErrClosed) {
			t.Error("resume after close:", err)
		}
		if err := vm.StartDirtyLog(); !errors.Is(err, kvm.ErrClosed) {
			t.Error("log after close:", err)
		}
		if err := vm.VCPUs()[0].Run(t.Context(), nil); !errors.Is(err, kvm.ErrClosed) {
			t.Error("run after close:", err)
		}
		if _, err := vm.VCPUs()[0].Regs(); !errors.Is(err, kvm.ErrClosed) {
			t.Error("registers after close:", err)
		}
		for _, bad := range []kvm.Config{
			{VCPUs: 100000, Memory: 4096}, {Memory: 4096, DirtyRing: 1000}, {Memory: 1}, {}, {VCPUs: -1, Memory: 4096},
			{Memory: 4096, DirtyRing: 1 << 20}, {Memory: 4096, DirtyRing: -1024},
		} {
			if vm, err := kvm.Create(bad); err == nil {
				t.Errorf("%+v was made", bad)
				vm.Close()
			}
		}
		// Half made, with rings and without: one vCPU has no CPUID, or none that KVM takes.
		for at := range 3 {
			for why, table := range map[string][]kvm.CPUIDEntry{"an error": nil, "no table": {}, "another's APIC ID": {{Function: 1, Ebx: 77 << 24}}} {
				half := kvm.Config{VCPUs: 3, Memory: 4 << 20, DirtyRing: 1024 * (i % 2)}
				half.CPUID = func(v int) ([]kvm.CPUIDEntry, error) {
					switch {
					case v < at:
						return kvm.SupportedCPUID(v)
					case table == nil:
						return nil, errors.New(why)
					}
					return table, nil
				}
				if vm, err := kvm.Create(half); err == nil {
					t.Errorf("vCPU %d with %s was made", at, why)
					vm.Close()
				}
			}
		}
	}
	if f, m := handles(t); f != fds || m != maps {
		t.Errorf("%d descriptors and %d mappings, were %d and %d", f, m, fds, maps)
	}
}
