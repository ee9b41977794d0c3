//go:build linux && amd64

package kvm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/kvm"
)

const reqNMI = 0xae9a

// nonMaskable is a paused guest that writes port 0x98 again and again, and port 0x99 at each NMI.
type nonMaskable struct {
	*adopted
	mu     sync.Mutex
	news   sync.Cond
	rounds int
	nmis   int
	ended  bool
}

func newNonMaskable(t *testing.T) *nonMaskable {
	const entry, handler = 0x1000, 0x2000
	g := &nonMaskable{adopted: newAdopted(t, 1, nil)}
	g.news.L = &g.mu
	copy(g.mem[entry:], []byte{0xe6, 0x98, 0xeb, 0xfc}) // OUT 0x98, AL; JMP to it
	copy(g.mem[handler:], []byte{0xe6, 0x99, 0xcf})     // OUT 0x99, AL; IRET
	binary.LittleEndian.PutUint32(g.mem[4*2:], handler) // the vector of an NMI
	v := g.vcpus[0]
	s, err := v.Sregs()
	must(t, err)
	s.CS.Base, s.CS.Selector = 0, 0
	must(t, errors.Join(v.SetSregs(s), v.SetRegs(kvm.Regs{RIP: entry, RSP: 0x6000, RFLAGS: 2})))
	return g
}

// run runs the guest, which is paused, while fn does.
func (g *nonMaskable) run(fn func()) {
	g.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	defer ended.Wait()
	defer stop()
	ended.Go(func() {
		v := g.vcpus[0]
		err := v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(io *kvm.IO) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			if io.Port == 0x99 {
				g.nmis++
			} else {
				g.rounds++
			}
			g.news.Broadcast()
			return nil
		}}))
		if !errors.Is(err, context.Canceled) {
			g.Error(err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.ended = true
		g.news.Broadcast()
	})
	fn()
}

// after lets the guest go on until it has written n times more, and pauses it. It returns how many
// NMIs it has taken meanwhile.
func (g *nonMaskable) after(n int) int {
	g.Helper()
	g.mu.Lock()
	rounds, nmis := g.rounds, g.nmis
	g.mu.Unlock()
	if err := g.Resume(context.Background()); err != nil {
		g.Fatal(err)
	}
	g.mu.Lock()
	for g.rounds < rounds+n && !g.ended {
		g.news.Wait()
	}
	g.mu.Unlock()
	if err := g.Pause(context.Background()); err != nil {
		g.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nmis - nmis
}

// An NMI that a vCPU was sent before it was rolled back is not the restored guest's: KVM has it
// queued, and the guest has not seen it. One that is part of the state is.
func TestAnNMIThatIsQueuedAtARollBackIsNotTheRestoredGuests(t *testing.T) {
	g := newNonMaskable(t)
	g.run(func() {
		send := func() {
			if _, err := rawValue(g.fds[0], reqNMI, 0); err != nil {
				t.Skip("this KVM sends no NMI:", err)
			}
		}
		if n := g.after(10); n != 0 {
			t.Fatalf("%d NMIs, and none was sent", n)
		}
		quiet := g.save()
		send()
		if n := g.after(10); n != 1 {
			t.Fatalf("an NMI was sent, and the guest has taken %d", n)
		}
		for range 3 {
			send()
			g.load(quiet)
			if n := g.after(10); n != 0 {
				t.Errorf("%d NMIs of before the roll-back have reached the guest", n)
			}
		}
		send()
		loud := g.save()
		g.load(quiet)
		if n := g.after(10); n != 0 {
			t.Errorf("%d NMIs that were pending before the roll-back have reached the guest", n)
		}
		g.load(loud)
		if n := g.after(10); n != 1 {
			t.Errorf("an NMI was pending in the state, and the guest has taken %d", n)
		}
	})
}
