//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// everywhere runs a test with 1 and 2 vCPUs, each with dirty bitmaps and with dirty rings. Where
// a sample is enough, it is one vCPU with bitmaps and two with rings.
func everywhere(t *testing.T, fn func(t *testing.T, p guest.Params, cfg kvm.Config)) {
	for vcpus := 1; vcpus <= 2; vcpus++ {
		for _, ring := range []int{0, 1024} {
			t.Run(fmt.Sprintf("vcpus=%d/ring=%d", vcpus, ring), func(t *testing.T) {
				if (vcpus > 1) != (ring > 0) {
					require.Sample(t, 1, 2)
				}
				fn(t, guest.Params{VCPUs: vcpus, Pages: 96, Touch: 12, Seed: 7}, kvm.Config{DirtyRing: ring})
			})
		}
	}
}

func TestAGuestGoesOnExactlyInAnotherVM(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		for _, p.TSCPerMille = range []int{0, 300} {
			a := newMachine(t, p, cfg)
			a.busy = 1
			a.load()
			a.start()
			a.await(200)
			a.pause()
			state := a.save()
			b := newMachine(t, p, cfg)
			b.busy, b.limit = 1, 600
			copy(b.Memory(), a.Memory())
			b.restore(state)
			before := a.frames
			a.halt()
			b.start()
			b.awaitLimit()
			b.halt()
			b.check(before)
		}
	})
}

func TestMemoryMovedByTheDirtyLogAloneStaysIdenticalOver30Generations(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		p.TSCPerMille = 50
		m := newMachine(t, p, cfg)
		m.load()
		image := bytes.Clone(m.Memory())
		var history [][][]guest.Frame
		pages := 0
		for generation := uint64(1); generation <= 30; generation++ {
			if err := m.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			m.busy = 1
			if generation == 30 {
				m.limit = 30 * 20
			}
			m.start()
			m.await(generation * 20)
			m.pause()
			state := m.save()
			pages += copyPages(image, m.Memory(), m.dirty())
			wantSame(t, fmt.Sprintf("generation %d", generation), image, m.Memory())
			if generation == 30 {
				m.resume()
				m.awaitLimit()
				m.halt()
				m.check(history...)
				break
			}
			m.halt()
			history = append(history, m.frames)
			next := newMachine(t, p, cfg)
			copy(next.Memory(), image)
			// Whatever restoring writes to memory must be in the log.
			if err := next.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			next.restore(state)
			m.Close()
			m = next
		}
		t.Logf("%d pages moved", pages)
	})
}

func TestARunningVMIsRolledBack20Times(t *testing.T) {
	everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
		a := newMachine(t, p, cfg)
		a.load()
		a.start()
		a.await(100)
		a.pause()
		state, image := a.save(), bytes.Clone(a.Memory())
		a.halt()

		b := newMachine(t, p, cfg)
		copy(b.Memory(), image)
		if err := b.StartDirtyLog(); err != nil {
			t.Fatal(err)
		}
		b.restore(state)
		b.start()
		var first []guest.Frame
		for i := range 20 {
			time.Sleep(time.Duration(i%4) * time.Millisecond)
			b.await(a.last(0) + 20)
			b.pause()
			if i == 0 {
				first = b.frames[0][:20]
			}
			for j, f := range b.frames[0][:20] {
				if f != first[j] {
					t.Fatalf("after roll-back %d frame %d is %+v, was %+v", i, j, f, first[j])
				}
			}
			copyPages(b.Memory(), image, b.dirty())
			wantSame(t, fmt.Sprintf("roll-back %d", i), b.Memory(), image)
			b.restore(state)
			b.mu.Lock()
			for v := range b.frames {
				b.frames[v] = nil
			}
			b.mu.Unlock()
			b.resume()
		}
		b.mu.Lock()
		b.limit = 1000
		b.mu.Unlock()
		b.awaitLimit()
		b.halt()
		b.check(a.frames)
	})
}
