//go:build linux && amd64

package kvm_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Checkpoints a second of a guest of one vCPU on KVM, with 64 pages that are dirty at
// each, one right after the other, over TCP to a second VM that stands still: pages that a device
// has marked, and pages that the guest writes in a round, after which it waits for its
// checkpoint. Beside them two bounds: a byte there and back as often as a checkpoint needs
// it, without a checkpoint; and the guest's rounds, with a pause after each and nothing else.
func BenchmarkCheckpoints(b *testing.B) {
	b.Run("marked", func(b *testing.B) {
		p := guest.Params{Pages: 2 * checkpointPages, Touch: 1, Delay: 1 << 16}
		m := newMachine(b, p, kvm.Config{})
		m.load()
		first := len(m.Memory()) - checkpointPages*kvm.PageSize
		rng := rand.NewChaCha8([32]byte{1})
		rng.Read(m.Memory()[first:]) // a page of zeros would be hardly sent
		m.start()
		checkpoints(b, m, m, 0, func() { m.MarkDirty(uint64(first), checkpointPages*kvm.PageSize) })
		b.ReportMetric(1/roundTrip(b).Seconds()/trips, "wire-bound/s")
	})
	b.Run("written", func(b *testing.B) {
		p := guest.Params{Pages: checkpointPages, Touch: checkpointPages}
		m := newMachine(b, p, kvm.Config{})
		m.load()
		r := newRounds(b, m)
		m.start()
		checkpoints(b, m, r, 1, func() { <-r.emits })
		b.ReportMetric(1/roundTrip(b).Seconds()/trips, "wire-bound/s")
		const n = 500
		ctx, begun := context.Background(), time.Now()
		for range n {
			<-r.emits
			if err := errors.Join(r.Pause(ctx), r.Resume(ctx)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(n/time.Since(begun).Seconds(), "rounds-bound/s")
	})
}

// checkpointPages is how many pages are dirty at a checkpoint.
const checkpointPages = 64

// rounds is a machine whose guest makes one round between two pauses: at its frame the vCPU
// waits, out of the guest, until it is to stop.
type rounds struct {
	*machine
	emits chan struct{} // a round is over

	mu   sync.Mutex
	stop chan struct{} // closed while the guest is paused, or about to be
}

func newRounds(b *testing.B, m *machine) *rounds {
	r := &rounds{machine: m, emits: make(chan struct{}), stop: make(chan struct{})}
	done := b.Context().Done()
	m.ensure = func(uint64) error {
		r.mu.Lock()
		stop := r.stop
		r.mu.Unlock()
		select {
		case r.emits <- struct{}{}:
		case <-stop:
			return nil
		case <-done:
			return nil
		}
		select {
		case <-stop:
		case <-done:
		}
		return nil
	}
	return r
}

func (r *rounds) Pause(ctx context.Context) error {
	r.mu.Lock()
	close(r.stop)
	r.mu.Unlock()
	return r.machine.Pause(ctx)
}

func (r *rounds) Resume(ctx context.Context) error {
	r.mu.Lock()
	r.stop = make(chan struct{})
	r.mu.Unlock()
	return r.machine.Resume(ctx)
}

// checkpoints makes b.N checkpoints of a machine that runs, each after ready, and vm is what pauses it.
func checkpoints(b *testing.B, primary *machine, vm colo.VM, keep int, ready func()) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	secondary := newMachine(b, primary.params, kvm.Config{})
	secondary.pause()
	blocks := func(m *machine) []ram.Block { return []ram.Block{{Name: kvm.RAMBlock, Host: m.Memory()}} }
	saver := ram.NewSaver(blocks(primary), primary.VM, ram.SaverConfig{KeepAfter: keep})
	cache, err := ram.NewCache(blocks(secondary), secondary.VM, ram.CacheConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer cache.Close()
	var ps, ss vmstate.Registry
	if err := errors.Join(saver.Register(&ps), primary.Register(&ps), cache.Register(&ss), secondary.Register(&ss)); err != nil {
		b.Fatal(err)
	}
	pc, sc := tcpPair(b)
	commits := make(chan event.CheckpointCommit, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var bus, unheard event.Bus
	event.Subscribe(&bus, func(c event.CheckpointCommit) {
		select {
		case commits <- c:
		case <-ctx.Done():
		}
	})
	lead, err := colo.NewPrimary(pc, colo.PrimaryConfig{VM: vm, State: &ps, RAM: saver, Events: &bus, CheckpointDelay: time.Hour, MinInterval: -1})
	if err != nil {
		b.Fatal(err)
	}
	follow, err := colo.NewSecondary(sc, colo.SecondaryConfig{VM: stands{}, State: &ss, RAM: cache, Events: &unheard})
	if err != nil {
		b.Fatal(err)
	}
	var sessions sync.WaitGroup
	ended := make(chan error, 2)
	sessions.Go(func() { ended <- lead.Run(ctx) })
	sessions.Go(func() { ended <- follow.Run(ctx) })
	defer sessions.Wait()
	defer cancel()
	next := func() event.CheckpointCommit {
		select {
		case c := <-commits:
			return c
		case err := <-ended:
			b.Fatal("a session has ended: ", err)
			panic("not reached")
		}
	}
	next() // the initial synchronisation
	var pauses []time.Duration
	sent := uint64(0)
	for b.Loop() {
		ready()
		lead.RequestCheckpoint(event.CauseRequest)
		c := next()
		sent += c.Pages
		pauses = append(pauses, time.Duration(c.PauseNS))
	}
	b.StopTimer()
	if sent < uint64(b.N*checkpointPages) {
		b.Fatalf("%d pages in %d checkpoints", sent, b.N)
	}
	slices.Sort(pauses)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "checkpoints/s")
	b.ReportMetric(float64(sent)/float64(b.N), "pages")
	b.ReportMetric(float64(pauses[len(pauses)/2].Nanoseconds())/1e3, "pause-p50-µs")
}

// trips is how often the two sides wait for each other in a checkpoint.
const trips = 3

// stands is a guest that stands still.
type stands struct{}

func (stands) Pause(context.Context) error  { return nil }
func (stands) Resume(context.Context) error { return nil }

// tcpPair returns the two ends of a connection over loopback.
func tcpPair(b *testing.B) (a, z net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Skip(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if z, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	return a, z
}

// roundTrip returns what a byte there and back takes, between two goroutines.
func roundTrip(b *testing.B) time.Duration {
	b.Helper()
	a, z := tcpPair(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer z.Close()
		var one [1]byte
		for {
			if _, err := z.Read(one[:]); err != nil {
				return
			}
			if _, err := z.Write(one[:]); err != nil {
				return
			}
		}
	}()
	const n = 500
	var one [1]byte
	begun := time.Now()
	for range n {
		if _, err := a.Write(one[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := a.Read(one[:]); err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(begun) / n
	a.Close()
	<-done
	return took
}
