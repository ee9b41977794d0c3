package colotest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func TestMain(m *testing.M) {
	if err := require.Parallel(4); err != nil { // tests of hosts wait most of the time
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

// running returns a guest in Run, until the end of the test.
func running(t *testing.T, cfg VMConfig) *VM {
	t.Helper()
	g, err := NewVM(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func hostOf(g *VM) Host {
	return Host{VM: g, Log: g, Blocks: g.Blocks(), Register: g.Register}
}

func TestGuestIsAHost(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]VMConfig{
		"one vCPU":          {Touch: 16, TSCPerMille: 500},
		"four vCPUs":        {VCPUs: 4, Pages: 64, Touch: 8, Ring: 1024},
		"as fast as it can": {VCPUs: 2, Pages: 64, Touch: 8, Interval: -1},
		"frames refused":    {Touch: 4, Output: refuseSome()},
		"with a disk":       {VCPUs: 2, Touch: 4, Disk: 64 << 10, DiskEvery: 2},
		"tracked":           {VCPUs: 2, Pages: 64, Touch: 8, Interval: -1, Disk: 64 << 10, DiskEvery: 2, Tracked: true},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "one vCPU" && name != "tracked" {
				t.Skip("short: one with a tracker and one without")
			}
			t.Parallel()
			if cfg.Tracked {
				needTracker(t)
			}
			TestVM(t, func(t *testing.T) Host { return hostOf(running(t, cfg)) })
		})
	}
}

func refuseSome() func([]byte) error {
	var mu sync.Mutex
	n := 0
	return func([]byte) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%3 == 0 {
			return ErrFull
		}
		return nil
	}
}

// The broken hosts below each break one promise.
type (
	neverPauses struct{ *VM }
	flatPauses  struct {
		*VM
		paused *atomic.Bool
	}
	panics         struct{ *VM }
	blindToNames   struct{ *VM }
	ignoresContext struct {
		*VM
		never chan struct{}
	}
	hangs struct {
		*VM
		never chan struct{}
	}
	forgetsPages struct{ *VM }
	keepsLog     struct{ *VM }
	overwrites   struct{ *VM }
	loadsAnytime struct{ *vcpu }
	losesField   struct{ *vcpu }
	appliesEarly struct{ *vcpu }
)

func (neverPauses) Pause(context.Context) error { return nil }

func (f flatPauses) Pause(ctx context.Context) error {
	if f.paused.Swap(true) {
		return nil
	}
	return f.VM.Pause(ctx)
}

func (f flatPauses) Resume(ctx context.Context) error {
	if !f.paused.Swap(false) {
		return nil
	}
	return f.VM.Resume(ctx)
}

func (panics) Pause(context.Context) error { panic("not written yet") }

func (b blindToNames) ReadDirty(_ string, bitmap []uint64) error {
	return b.VM.ReadDirty(Block, bitmap[:len(b.VM.dirty)])
}

func (i ignoresContext) Pause(ctx context.Context) error {
	if ctx.Err() != nil {
		<-i.never
	}
	return i.VM.Pause(ctx)
}

func (h hangs) Pause(context.Context) error {
	<-h.never
	return nil
}

func (f forgetsPages) ReadDirty(block string, bitmap []uint64) error {
	err := f.VM.ReadDirty(block, bitmap)
	if err == nil {
		bitmap[ringPageWord] &= 1<<63 - 1<<1
	}
	return err
}

// ringPageWord is the word of the bitmap that has the first ring.
const ringPageWord = (1 << 20) / ram.PageSize / 64

func (k keepsLog) ReadDirty(block string, bitmap []uint64) error {
	err := k.VM.ReadDirty(block, bitmap)
	for i, w := range bitmap {
		k.VM.dirty[i] |= w
	}
	return err
}

func (o overwrites) ReadDirty(block string, bitmap []uint64) error {
	clear(bitmap)
	return o.VM.ReadDirty(block, bitmap)
}

func (l loadsAnytime) VMState(f *vmstate.Fields) {
	var n uint64
	f.Uint64("n", &n)
}
func (loadsAnytime) PreSave() error        { return nil }
func (loadsAnytime) PostLoad(uint32) error { return nil }

func (l losesField) PostLoad(v uint32) error {
	k := l.vcpu.regs.K
	err := l.vcpu.PostLoad(v)
	l.vcpu.regs.K = k
	return err
}

func (a appliesEarly) VMState(f *vmstate.Fields) {
	a.vcpu.VMState(f)
	if f.Loading() && f.Err() == nil {
		_ = a.vcpu.PostLoad(vcpuVersion)
	}
}

// resumes is a vCPU that takes a pause back when it is loaded.
type resumes struct {
	*vcpu
	g *VM
}

func (resumes) PreSave() error { return nil } // it saves while it runs, too

func (r resumes) PostLoad(version uint32) error {
	err := r.vcpu.PostLoad(version)
	r.g.open()
	return err
}

// soon is a guest that runs on a while after Resume has returned.
type soon struct{ *VM }

func (s soon) Resume(context.Context) error {
	time.AfterFunc(20*time.Millisecond, s.open)
	return nil
}

func TestAGuestMayRunOnSoonAfterResumeHasReturned(t *testing.T) {
	g := running(t, VMConfig{Touch: 4})
	h := hostOf(g)
	h.VM = soon{g}
	for _, check := range []func(*subject) error{(*subject).roundTrip, (*subject).rollBack, (*subject).loadRunning} {
		if err := newSubject(h).check(check); err != nil {
			t.Error(err)
		}
	}
}

func registers(d vmstate.Device) func(*vmstate.Registry) error {
	return func(reg *vmstate.Registry) error {
		return reg.Register(vmstate.Entry{Name: "vcpu", Version: vcpuVersion}, d)
	}
}

func paused() *atomic.Bool {
	b := new(atomic.Bool)
	b.Store(true)
	return b
}

func TestTestVMSaysWhatIsWrong(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	for _, c := range []struct {
		name string
		host func(Host, *VM) Host
		fn   func(*subject) error
		want string
	}{
		{"pause does nothing", func(h Host, g *VM) Host { h.VM = neverPauses{g}; return h },
			(*subject).pauseStandsStill, "changed after Pause had returned"},
		{"pauses do not nest", func(h Host, g *VM) Host { h.VM = flatPauses{g, paused()}; return h },
			(*subject).nests, "pauses must nest"},
		{"another's pause is undone", func(h Host, g *VM) Host { h.VM = flatPauses{g, paused()}; return h },
			(*subject).others, "pauses must nest"},
		{"it panics", func(h Host, g *VM) Host { h.VM = panics{g}; return h },
			(*subject).contexts, "the host panicked while a rule was checked: Pause with a context that has ended: not written yet"},
		{"a log for one block", func(h Host, g *VM) Host { h.Log = blindToNames{g}; return h },
			(*subject).dirtyLog, "a log must look at the block's name"},
		{"no memory", func(h Host, g *VM) Host { h.Blocks = nil; return h },
			(*subject).dirtyLog, "Blocks is empty"},
		{"a context is ignored", func(h Host, g *VM) Host { h.VM = ignoresContext{g, never}; return h },
			(*subject).contexts, "Pause does not return when its context has ended"},
		{"a pause hangs", func(h Host, g *VM) Host { h.VM = hangs{g, never}; return h },
			(*subject).pause, "Pause has not returned"},
		{"a page is not logged", func(h Host, g *VM) Host { h.Log = forgetsPages{g}; return h },
			(*subject).dirtyLog, "changed and the dirty log does not say so"},
		{"a page is not logged, while running", func(h Host, g *VM) Host { h.Log = forgetsPages{g}; return h },
			(*subject).dirtyLogRunning, "changed and the dirty log does not say so"},
		{"a page is not logged, over generations", func(h Host, g *VM) Host { h.Log = forgetsPages{g}; return h },
			(*subject).generations, "a copy that follows the dirty log differs"},
		{"the log is not cleared", func(h Host, g *VM) Host { h.Log = keepsLog{g}; return h },
			(*subject).dirtyLog, "reading must clear the log"},
		{"the bitmap is overwritten", func(h Host, g *VM) Host { h.Log = overwrites{g}; return h },
			(*subject).dirtyLog, "it must add to them"},
		{"a page that stays writable is logged no more", func(h Host, g *VM) Host { h.Log = newKeeping(g, neverAgain); return h },
			(*subject).keeper, "while KeepDirty names pages: "},
		{"pages that were not named stay writable", func(h Host, g *VM) Host { h.Log = newKeeping(g, keepsAll); return h },
			(*subject).keeper, "which KeepDirty has not named"},
		{"pages stay writable for good", func(h Host, g *VM) Host { h.Log = newKeeping(g, keepsOn); return h },
			(*subject).keeper, "though KeepDirty names none any more"},
		{"what stayed writable is forgotten", func(h Host, g *VM) Host { h.Log = newKeeping(g, owesNothing); return h },
			(*subject).keeper, "after KeepDirty "},
		{"a register is not loaded", func(h Host, g *VM) Host { h.Register = registers(losesField{g.vcpus[0]}); return h },
			(*subject).rollBack, "byte "},
		{"a running guest is loaded", func(h Host, g *VM) Host { h.Register = registers(loadsAnytime{g.vcpus[0]}); return h },
			(*subject).loadRunning, "it must be refused"},
		{"a load resumes the guest", func(h Host, g *VM) Host { h.Register = registers(resumes{g.vcpus[0], g}); return h },
			(*subject).roundTrip, "must stand still until it is resumed"},
		{"staging touches the guest", func(h Host, g *VM) Host { h.Register = registers(appliesEarly{g.vcpus[0]}); return h },
			(*subject).loadRolledBack, "VMState must change nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// What is wrong shows when the guest has a CPU in the moments that the check
			// gives it, which a busy machine may not do each time.
			var err error
			for end := time.Now().Add(time.Minute); err == nil && time.Now().Before(end); {
				g := running(t, VMConfig{Touch: 4})
				s := newSubject(c.host(hostOf(g), g))
				if strings.Contains(c.want, "not return") {
					s.patience /= 100
				}
				err = s.check(c.fn)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the check says %v, want %q", err, c.want)
			}
		})
	}
}

func TestRoundsAllocateNothing(t *testing.T) {
	g, err := NewVM(VMConfig{
		Touch: 8, TSCPerMille: 500, Output: func([]byte) error { return nil },
		Disk: 1 << 20, DiskEvery: 2, Write: func([]byte, int64, bool) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	bitmap := make([]uint64, len(g.dirty))
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(g.Step(10), g.ReadDirty(Block, bitmap)); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("ten rounds and a look at the dirty log allocate %v times", n)
	}
}

func TestAFrameComesAfterTheBlockOfItsRound(t *testing.T) {
	var order []string
	broken := errors.New("broken")
	flushed := 0
	g, err := NewVM(VMConfig{
		Touch: 2, Disk: 16 << 10, DiskEvery: 3,
		Output: func([]byte) error { order = append(order, "frame"); return nil },
		Write: func(p []byte, off int64, flush bool) error {
			if off%512 != 0 || len(p)%512 != 0 || len(p) == 0 || off+int64(len(p)) > 16<<10 {
				t.Errorf("%d bytes at %d", len(p), off)
			}
			if flush {
				flushed++
			}
			if order = append(order, "block"); len(order) > 4*16 {
				return broken
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Step(3 * 16); err != nil {
		t.Fatal(err)
	}
	for i, what := range order {
		want := "frame"
		if i%4 == 2 {
			want = "block"
		}
		if what != want {
			t.Fatalf("%d: a %s after %v", i, what, order[:i])
		}
	}
	if len(order) != 4*16 || flushed != 1 {
		t.Errorf("%d frames and blocks, %d flushed", len(order), flushed)
	}
	if err := g.Step(3); !errors.Is(err, broken) {
		t.Errorf("a write that failed: %v", err)
	}
	if len(order) != 4*16+3 {
		t.Errorf("%v after the write that failed", order[4*16:])
	}
}

func TestAPauseWaitsForAWrite(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	g := running(t, VMConfig{Disk: 16 << 10, DiskEvery: 1, Write: func([]byte, int64, bool) error {
		once.Do(func() {
			close(begun)
			<-end
		})
		return nil
	}})
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a pause in the middle of a write: %v", err)
	}
	close(end)
	if err := g.Pause(t.Context()); err != nil {
		t.Error(err)
	}
}
