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
// each (a device's: what the guest's own writes cost is its dirty log's affair), one
// right after the other, over TCP to a second VM that stands still. Beside it the bound
// of the wire: a byte there and back as often as a checkpoint needs it, without a
// checkpoint.
func BenchmarkCheckpoints(b *testing.B) {
	const pages = 64
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	p := guest.Params{Pages: 2 * pages, Touch: 1, Delay: 1 << 16}
	primary, secondary := newMachine(b, p, kvm.Config{}), newMachine(b, p, kvm.Config{})
	primary.load()
	secondary.pause()
	mem := primary.Memory()
	first := len(mem) - pages*kvm.PageSize
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(mem[first:]) // a page of zeros would be hardly sent
	primary.start()
	blocks := func(m *machine) []ram.Block { return []ram.Block{{Name: kvm.RAMBlock, Host: m.Memory()}} }
	saver := ram.NewSaver(blocks(primary), primary.VM, ram.SaverConfig{})
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
	lead, err := colo.NewPrimary(pc, colo.PrimaryConfig{VM: primary, State: &ps, RAM: saver, Events: &bus, CheckpointDelay: time.Hour, MinInterval: -1})
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
		primary.MarkDirty(uint64(first), pages*kvm.PageSize)
		lead.RequestCheckpoint(event.CauseRequest)
		c := next()
		sent += c.Pages
		pauses = append(pauses, time.Duration(c.PauseNS))
	}
	b.StopTimer()
	if sent < uint64(b.N*pages) {
		b.Fatalf("%d pages in %d checkpoints", sent, b.N)
	}
	slices.Sort(pauses)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "checkpoints/s")
	b.ReportMetric(float64(sent)/float64(b.N), "pages")
	b.ReportMetric(float64(pauses[len(pauses)/2].Nanoseconds())/1e3, "pause-p50-µs")
	b.ReportMetric(1/roundTrip(b).Seconds()/trips, "wire-bound/s")
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
