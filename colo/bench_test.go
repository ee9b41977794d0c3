package colo_test

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// loopback returns the two ends of a TCP connection.
func loopback(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// bench is a protected guest over loopback TCP.
type bench struct {
	*pair
	commits chan event.CheckpointCommit
	cancel  func()
	paused  func() // called in each checkpoint, when the guest stands still
}

func newBench(b *testing.B, cfg colotest.VMConfig, delay time.Duration) *bench {
	b.Helper()
	w := &world{cfg: cfg}
	x := &bench{pair: &pair{world: w}, commits: make(chan event.CheckpointCommit, 1)}
	x.p, x.s = benchHost(b, w, "primary"), benchHost(b, w, "secondary")
	ctx, cancel := context.WithCancel(context.Background())
	if err := x.p.guest.Resume(ctx); err != nil {
		b.Fatal(err)
	}
	pc, sc := loopback(b)
	x.join(b, pc, sc, options{
		primary: func(c *colo.PrimaryConfig) {
			c.CheckpointDelay, c.Disks, c.RAM = delay, nil, x.p.saver
			c.Step = func(op string, _ uint64) {
				if op == "capture" && x.paused != nil {
					x.paused()
				}
			}
		},
		secondary: func(c *colo.SecondaryConfig) { c.Disks = nil },
	})
	event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		select {
		case x.commits <- c:
		case <-ctx.Done():
		}
	})
	x.start(ctx)
	x.cancel = func() {
		cancel()
		x.wait()
		x.close()
	}
	<-x.commits // the initial synchronisation
	return x
}

// benchHost returns a host that records nothing and whose guest's frames vanish.
func benchHost(b *testing.B, w *world, name string) *host {
	b.Helper()
	h := &host{t: b, name: name, world: w, net: &colotest.Network{Keep: -1}, disk: colotest.NewDisk()}
	var err error
	if h.guest, err = colotest.NewVM(w.cfg); err != nil {
		b.Fatal(err)
	}
	h.plain.guest = h.guest
	return h
}

func (x *bench) checkpoint() event.CheckpointCommit {
	x.primary.RequestCheckpoint(event.CauseRequest)
	return <-x.commits
}

type durations []time.Duration

func (d durations) at(q float64) time.Duration {
	slices.Sort(d)
	return d[int(float64(len(d)-1)*q)]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// dirty has the guest write about n pages here and there.
func (x *bench) dirty(n int) {
	if n > 0 {
		x.p.step(n)
	}
}

// copyCost measures the time to copy n scattered pages of the guest at the moment of a
// checkpoint, when they are captured.
func (x *bench) copyCost(n int, arena []byte, r *rand.Rand) (d time.Duration) {
	mem := x.p.guest.Memory()
	set := mem[len(mem)-4*n*ram.PageSize:]
	pages := r.Perm(4 * n)[:n]
	slices.Sort(pages)
	x.dirty(n)
	x.paused = func() { // on the session's goroutine; checkpoint orders it after this
		start := time.Now()
		for i, p := range pages {
			copy(arena[i*ram.PageSize:(i+1)*ram.PageSize], set[p*ram.PageSize:])
		}
		d = time.Since(start)
	}
	x.checkpoint()
	x.paused = nil
	return d
}

// benchmarkCheckpoint dirties about n scattered pages and makes a checkpoint,
// again and again. It reports how long the guest stood still, and how much of
// that each dirty page cost, beside what copying as many pages takes.
func benchmarkCheckpoint(b *testing.B, n int) {
	cfg := colotest.VMConfig{Pages: max(4*n, 1), Touch: 1, Seed: 3}
	if n == 0 {
		cfg.Touch = 0
	}
	x := newBench(b, cfg, time.Hour)
	defer x.cancel()
	for range 20 { // what grows with use has grown
		x.dirty(n)
		x.checkpoint()
	}
	var idle, pause, whole, copied durations
	var pages uint64
	arena, r := make([]byte, n*ram.PageSize), rand.New(rand.NewPCG(5, 6))
	b.ResetTimer()
	for i := range b.N {
		x.dirty(n)
		start := time.Now()
		c := x.checkpoint()
		whole = append(whole, time.Since(start))
		pause = append(pause, time.Duration(c.PauseNS))
		pages += c.Pages
		if n > 0 && i%4 == 0 { // the bounds, in the same weather
			copied = append(copied, x.copyCost(n, arena, r))
			idle = append(idle, time.Duration(x.checkpoint().PauseNS))
		}
	}
	b.StopTimer()
	var sum time.Duration
	for _, d := range whole {
		sum += d
	}
	b.ReportMetric(float64(len(whole))/sum.Seconds(), "checkpoints/s")
	b.ReportMetric(micros(pause.at(0.5)), "pause-p50-µs")
	b.ReportMetric(micros(pause.at(0.99)), "pause-p99-µs")
	if n > 0 {
		sent := float64(pages) / float64(b.N)
		page := float64((pause.at(0.5) - idle.at(0.5)).Nanoseconds()) / sent
		bound := float64(copied.at(0.5).Nanoseconds()) / float64(n)
		b.ReportMetric(sent, "pages")
		b.ReportMetric(page, "ns/page")
		b.ReportMetric(bound, "copy-ns/page")
		b.ReportMetric(page/bound, "growth/copy")
	}
}

func BenchmarkCheckpointIdle(b *testing.B)     { benchmarkCheckpoint(b, 0) }
func BenchmarkCheckpoint64Pages(b *testing.B)  { benchmarkCheckpoint(b, 64) }
func BenchmarkCheckpoint1kPages(b *testing.B)  { benchmarkCheckpoint(b, 1000) }
func BenchmarkCheckpoint10kPages(b *testing.B) { benchmarkCheckpoint(b, 10000) }

// BenchmarkCheckpointRunning protects a pair of guests that run all the time,
// checkpoint after checkpoint.
func BenchmarkCheckpointRunning(b *testing.B) {
	x := newBench(b, colotest.VMConfig{Pages: 64, Touch: 16}, -1)
	defer x.cancel()
	defer x.p.running()()
	defer x.s.running()()
	var pause durations
	b.ResetTimer()
	start := time.Now()
	for range b.N {
		pause = append(pause, time.Duration((<-x.commits).PauseNS))
	}
	took := time.Since(start)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/took.Seconds(), "checkpoints/s")
	b.ReportMetric(micros(pause.at(0.5)), "pause-p50-µs")
	b.ReportMetric(micros(pause.at(0.99)), "pause-p99-µs")
}
