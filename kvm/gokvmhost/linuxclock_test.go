//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/kvm"
)

// reading has the values of the clocks of a guest at one time.
type reading struct{ n, tsc, mono, real uint64 }

// clocks returns what the guest has said last of its clocks.
func (l *lines) clocks() (r reading) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Backward(l.list) {
		if k, _ := fmt.Sscanf(s, "clocks %d tsc %d mono %d real %d", &r.n, &r.tsc, &r.mono, &r.real); k == 4 {
			return r
		}
	}
	return reading{}
}

// A guest that is rolled back, again and again, sees its clocks go on from where they
// were saved: no later than it took to get there, none of them apart from the others,
// and none of them stands still. That holds for one that makes its time of KVM's clock
// and for one that makes it of the TSC.
func TestLinuxSeesItsClocksNeitherStopNorStep(t *testing.T) {
	for _, source := range []string{"kvm-clock", "tsc"} {
		t.Run(source, func(t *testing.T) {
			args := clocksEnv + "=1"
			if source == "tsc" {
				args += " clocksource=tsc tsc=reliable"
			}
			l := newLinux(t, 2, args)
			p := l.boot()
			if !l.console.has("guest: clock " + source) {
				l.fail("the guest has another clock")
			}
			cpu, err := p.VM().CPU()
			must(t, err)
			must(t, p.VM().StartDirtyLog())
			// How long it takes at most to hear what the guest says next: by as much may
			// what is heard be older than it seems. On a busy host that is a lot.
			slowest := time.Duration(0)
			next := func() reading {
				begun, before := time.Now(), l.console.clocks().n
				l.await(p, "clocks", func() bool { return l.console.clocks().n > before })
				slowest = max(slowest, time.Since(begun))
				return l.console.clocks()
			}
			next()
			told, at := next(), time.Now()
			must(t, p.Pause(t.Context()))
			p.halt()
			state := p.save()
			between := time.Since(at) // from when told was read, or after, to the save
			must(t, p.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(p.stale))))
			shadow, disk := bytes.Clone(p.mem), bytes.Clone(l.disk.Data)
			lines, part := l.console.mark()
			worst := time.Duration(0)
			for i := range 20 {
				l.what = fmt.Sprintf("after %d roll-backs", i)
				p.run()
				must(t, p.Resume(t.Context()))
				time.Sleep(time.Duration(i%5) * 200 * time.Millisecond)
				must(t, p.Pause(t.Context()))
				p.halt()
				clear(p.stale)
				must(t, p.VM().ReadDirty(kvm.RAMBlock, p.stale))
				p.put(shadow)
				copy(l.disk.Data, disk)
				l.console.cut(lines, part)
				begun := time.Now()
				p.load(state)
				loading := time.Since(begun) // the TSC comes before the clock, and goes on meanwhile
				if err := p.VM().TSCError(); err != nil {
					l.fail(err.Error())
				}
				p.run()
				must(t, p.Resume(t.Context()))
				before := l.console.clocks()
				for range 3 {
					now := next()
					passed := time.Since(begun)
					byTSC := time.Duration(float64(now.tsc-told.tsc) / float64(cpu.TSCKHz) * 1e6)
					byMono, byReal := time.Duration(now.mono-told.mono), time.Duration(now.real-told.real)
					// What a console and the emulator may take beside that.
					slack := 150*time.Millisecond + slowest
					most := between + passed + slack
					if now.mono <= before.mono || now.tsc <= before.tsc || byTSC > most || byMono > most || byReal > most {
						l.fail(fmt.Sprintf("by the TSC %v, monotonic %v, of day %v have passed since the save, at most %v can have", byTSC, byMono, byReal, most))
					}
					if d := (byTSC - byMono).Abs(); d > slack+between+loading {
						l.fail(fmt.Sprintf("the TSC has gone %v, the monotonic clock %v", byTSC, byMono))
					}
					worst = max(worst, byTSC-passed-between)
					before = now
				}
				must(t, p.Pause(t.Context()))
				p.halt()
			}
			t.Logf("at worst %v later than the time that had passed; the guest was heard within %v", worst, slowest)
			l.check()
		})
	}
}

// A guest that stood still for a minute, as when an arbiter takes so long, does not take
// its CPUs for stuck: it would panic.
func TestLinuxSurvivesALongPause(t *testing.T) {
	l := newLinux(t, 2, "softlockup_panic=1 watchdog_thresh=5")
	p := l.boot()
	must(t, p.Pause(t.Context()))
	long := time.Minute
	if testing.Short() {
		long = 25 * time.Second // five times what the guest minds
	}
	time.Sleep(long)
	must(t, p.Resume(t.Context()))
	job := l.console.last("job")
	// Its watchdog looks every fifth of the time that it minds, and twice it must.
	until := time.Now().Add(10 * time.Second)
	l.await(p, "going on", func() bool { return l.console.last("job") > job+5 && time.Now().After(until) })
	if p.VM().Stopped() < long {
		t.Errorf("the guest stood still for %v, was paused for %v", p.VM().Stopped(), long)
	}
	l.check()
	p.halt()
}
