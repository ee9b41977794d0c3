//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A guest is saved in one place and restored in another, again and again, some of
// them new and some where it has been before. What moves its memory is the dirty
// log.
func TestLinuxGoesThrough30Generations(t *testing.T) {
	for i, k := range linuxKinds {
		if testing.Short() && i == 0 {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLinux(t, k.vcpus, k.cmdline)
			l.own = k.own
			here, there := l.boot(), l.newPlace()
			must(t, here.VM().StartDirtyLog())
			must(t, here.Pause(t.Context()))
			here.halt()
			shadow := bytes.Clone(here.mem)
			there.stale = all(there.stale)
			l.goOn(here)

			pages := 0
			for g := 1; g <= 30; g++ {
				state := here.save() // may write memory
				pages += here.take(shadow, there)
				if g%10 == 0 { // a machine that never ran
					there = l.newPlace()
					there.stale = all(there.stale)
				}
				there.put(shadow)
				there.load(state)
				must(t, there.VM().StartDirtyLog())
				must(t, there.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(there.stale)))) // of the loading
				there.same(shadow)
				l.what = fmt.Sprintf("generation %d", g)
				l.goOn(there)
				here, there = there, here
			}
			t.Logf("%d pages per generation", pages/30)
			l.check()
		})
	}
}

// A guest that runs is rolled back, again and again, to one and the same state.
func TestLinuxIsRolledBack20Times(t *testing.T) {
	for i, k := range linuxKinds {
		if testing.Short() && i == 0 {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLinux(t, k.vcpus, k.cmdline)
			l.own, l.more = k.own, k.own // all that package pc has
			p := l.boot()
			must(t, p.VM().StartDirtyLog())
			must(t, p.Pause(t.Context()))
			p.halt()
			state := p.save()
			must(t, p.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(p.stale))))
			shadow, disks := bytes.Clone(p.mem), l.images()
			lines, part := l.console.mark()
			pages := 0
			for i := range 20 {
				l.what = fmt.Sprintf("after %d roll-backs", i)
				l.goOn(p)
				l.check()
				p.save() // as a session does that ends
				clear(p.stale)
				must(t, p.VM().ReadDirty(kvm.RAMBlock, p.stale))
				pages += ram.Bitmap(p.stale).Count()
				p.put(shadow)
				l.putImages(disks)
				l.console.cut(lines, part)
				p.load(state)
				must(t, p.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(p.stale))))
				p.same(shadow)
			}
			t.Logf("%d pages per roll-back", pages/20)
			l.what = "after the last roll-back"
			l.goOnWithAll(p)
			l.check()
		})
	}
}

// A guest that switches itself off ends Run, one that resets itself too, and can
// be rolled back to before.
func TestLinuxSwitchesItselfOffAndResets(t *testing.T) {
	l := newLinux(t, 2, "")
	p := l.boot()
	must(t, p.VM().StartDirtyLog())
	must(t, p.Pause(t.Context()))
	p.halt()
	state := p.save()
	must(t, p.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(p.stale))))
	shadow, disk := bytes.Clone(p.mem), bytes.Clone(l.disk.Data)
	lines, part := l.console.mark()
	for order, want := range map[string]error{"off\n": gokvmhost.ErrPowerOff, "reset\n": gokvmhost.ErrReset} {
		p.run()
		must(t, p.Resume(t.Context()))
		if n, err := p.Input([]byte(order)); n != len(order) || err != nil {
			t.Fatal(n, err)
		}
		if err := l.ended(p, strings.TrimSpace(order)); !errors.Is(err, want) {
			l.fail(fmt.Sprintf("told %q, Run ended with %v", order, err))
		}
		p.stop = nil
		must(t, p.Pause(t.Context()))
		clear(p.stale)
		must(t, p.VM().ReadDirty(kvm.RAMBlock, p.stale))
		p.put(shadow)
		copy(l.disk.Data, disk)
		l.console.cut(lines, part)
		p.load(state)
		l.goOn(p)
		l.check()
	}
}
