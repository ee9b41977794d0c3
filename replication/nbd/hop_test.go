package nbd_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

var hopTime = flag.Duration("hop.time", 250*time.Millisecond, "how long, in the time of the model, a disk is written at one hop's distance")

// What the model of two hosts is like. Only ratios of times in it are looked at.
const (
	hopLatency   = 400 * time.Microsecond // one way
	hopBandwidth = 250 << 20              // bytes a second
	diskRate     = 500 << 20              // bytes a second to stable storage
	diskFlush    = 500 * time.Microsecond // and that much for the rest of a flush
	diskWrite    = 20 * time.Microsecond  // into the cache
	hopDepth     = 16
	hopSize      = 32 << 20
	hopEpoch     = 100 * time.Millisecond
)

// hopPipe returns the two ends of a connection that takes time, both of which
// are closed in the end.
func hopPipe(wg *sync.WaitGroup) (a, b net.Conn) {
	a, fromA := net.Pipe()
	b, fromB := net.Pipe()
	wg.Go(func() { relay(fromA, fromB) })
	wg.Go(func() { relay(fromB, fromA) })
	return a, b
}

// relay takes what comes from src at the rate of the link, and gives it to dst
// later.
func relay(src, dst net.Conn) {
	type chunk struct {
		p  []byte
		at time.Time
	}
	way := make(chan chunk, 64)
	go func() {
		defer close(way)
		for {
			p := make([]byte, 32<<10)
			n, err := src.Read(p)
			if err != nil {
				return
			}
			time.Sleep(time.Duration(n) * time.Second / hopBandwidth)
			way <- chunk{p[:n], time.Now().Add(hopLatency)}
		}
	}()
	for c := range way {
		time.Sleep(time.Until(c.at))
		if _, err := dst.Write(c.p); err != nil {
			src.Close()
		}
	}
	dst.Close()
}

// cachedDisk is a disk in memory that is as slow as one with a cache: what is
// written has to get to stable storage, one after the other.
type cachedDisk struct {
	mu    sync.Mutex
	dirty map[int64]bool // blocks in the cache
	done  time.Time      // when the storage has what it was given
	syncs int
}

func (d *cachedDisk) Size() int64 { return hopSize }

func (d *cachedDisk) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

func (d *cachedDisk) WriteAt(p []byte, off int64) (int, error) {
	time.Sleep(diskWrite)
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / 4096; b*4096 < off+int64(len(p)); b++ {
		d.dirty[b] = true
	}
	return len(p), nil
}

// StartSync implements replication.SyncStarter.
func (d *cachedDisk) StartSync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.done.Before(now) {
		d.done = now
	}
	d.done = d.done.Add(time.Duration(len(d.dirty)) * 4096 * time.Second / diskRate)
	clear(d.dirty)
}

func (d *cachedDisk) Sync() error {
	d.StartSync()
	d.mu.Lock()
	done := d.done
	d.syncs++
	d.mu.Unlock()
	time.Sleep(time.Until(done) + diskFlush)
	return nil
}

func newCachedDisk() *cachedDisk { return &cachedDisk{dirty: make(map[int64]bool)} }

// hopRig is two hosts.
type hopRig struct {
	t    *testing.T
	stop []func()
}

// client serves d to a client at one hop's distance.
func (x *hopRig) client(d nbd.Disk) *nbd.Client {
	x.t.Helper()
	srv := nbd.NewServer(nbd.ServerConfig{})
	_, err := srv.Export(nbd.ExportConfig{Disk: d})
	must(x.t, err)
	var wg sync.WaitGroup
	a, b := hopPipe(&wg)
	wg.Go(func() { srv.ServeConn(context.Background(), b) })
	c, err := nbd.NewClient(context.Background(), a, nbd.ClientConfig{})
	must(x.t, err)
	x.stop = append(x.stop, func() { c.Close(); wg.Wait() })
	return c
}

func (x *hopRig) end() {
	for _, stop := range slices.Backward(x.stop) {
		stop()
	}
}

// hopLoad is a load of a guest: the size of its writes, and how often it flushes.
type hopLoad struct {
	size  int64
	flush int // after so many writes of each; 0: never
}

// run writes d for a while, and returns how many bytes a second were written, and
// of the answers' times the longest but for one in a hundred.
func (l hopLoad) run(d interface {
	WriteAt([]byte, int64) (int, error)
	Sync() error
}) (rate float64, p99 time.Duration) {
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	begin, long := time.Now(), *hopTime
	if testing.Short() {
		long /= 2
	}
	for i := range hopDepth {
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			p := make([]byte, l.size)
			for n := 1; time.Since(begin) < long; n++ {
				at := time.Now()
				d.WriteAt(p, rng.Int64N(hopSize/l.size)*l.size)
				if l.flush > 0 && n%l.flush == 0 {
					d.Sync()
				}
				mu.Lock()
				took = append(took, time.Since(at))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	seconds := time.Since(begin).Seconds()
	slices.Sort(took)
	return float64(int64(len(took))*l.size) / seconds, took[len(took)*99/100]
}

// A disk that is protected answers a guest as fast as one that is simply on the
// other host, whose writes wait for it: in a model of two hosts whose processors
// take no time, so that all that counts is who waits for whom.
func TestProtectedDiskKeepsUpWithARemoteOne(t *testing.T) {
	for name, load := range map[string]hopLoad{
		"4k":                   {size: 4 << 10},
		"64k":                  {size: 64 << 10},
		"4k, flushed by eight": {size: 4 << 10, flush: 8},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && load.flush == 0 {
				t.Skip("short: only the load that flushes")
			}
			var rate [2]float64
			var p99 [2]time.Duration
			synctest.Test(t, func(t *testing.T) {
				x := hopRig{t: t}
				defer x.end()
				rate[0], p99[0] = load.run(x.client(newCachedDisk()))
			})
			synctest.Test(t, func(t *testing.T) {
				x := hopRig{t: t}
				defer x.end()
				rate[1], p99[1] = load.run(x.protected())
			})
			t.Logf("protected / remote: %.2f of the rate, %.2f of the 99th percentile of the time (%v, %v)", rate[1]/rate[0], float64(p99[1])/float64(p99[0]), p99[1], p99[0])
			if rate[1] < 0.9*rate[0] {
				t.Errorf("a protected disk has %.2f of the rate of a remote one, want 0.9", rate[1]/rate[0])
			}
			if p99[1] > 8*p99[0] { // 64 times, if what is held is let in as fast as memory takes it
				t.Errorf("one in a hundred writes takes %v, and %v to a remote disk: they wait for what was let in while writes were held", p99[1], p99[0])
			}
		})
	}
}

// protected returns a primary's disk with a checkpoint in each hopEpoch.
func (x *hopRig) protected() *replication.Primary {
	t, ctx := x.t, context.Background()
	t.Helper()
	s, err := replication.NewSecondary(newCachedDisk(), replication.SecondaryConfig{})
	must(t, err)
	must(t, s.Start(ctx))
	p, err := replication.NewPrimary(newCachedDisk(), replication.PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.Attach(x.client(s.Export())))
	must(t, p.Start(ctx))
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(run) })
	wg.Go(func() {
		for epoch := uint64(1); ; epoch++ {
			select {
			case <-time.After(hopEpoch):
			case <-run.Done():
				return
			}
			must(t, p.Mark(ctx, epoch))
			time.Sleep(2 * hopLatency) // the state, and its receipt
			must(t, s.Checkpoint(ctx, epoch))
			must(t, p.Loaded(ctx, epoch))
		}
	})
	x.stop = append(x.stop, func() { cancel(); wg.Wait(); must(t, p.Stop(ctx, true)) })
	return p
}
