package colo_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/slow"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// written is the log of a guest whose writes the benchmark makes.
type written struct {
	mu    sync.Mutex
	mem   []byte
	dirty ram.Bitmap
	n     byte
}

// write writes the pages from first on.
func (w *written) write(first, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	for i := first; i < first+n; i++ {
		w.mem[i*ram.PageSize] = w.n | 1
		w.dirty.Set(i)
	}
}

func (w *written) ReadDirty(_ string, bitmap []uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ram.Bitmap(bitmap).Or(w.dirty)
	clear(w.dirty)
	return nil
}

func (*written) Pause(context.Context) error  { return nil }
func (*written) Resume(context.Context) error { return nil }

// aheadRun counts the cost of the checkpoints of a guest with a hot set and a cold set.
type aheadRun struct {
	bytes, pages    uint64
	pause, transfer time.Duration // medians; transfer: from the pause on
	whole           time.Duration // from the request on, likewise
}

// aheadWay is how the checkpoints of a run are made.
type aheadWay struct {
	delay     time.Duration
	threshold int64   // PrimaryConfig.AheadThreshold
	share     float64 // PrimaryConfig.EarlyShare
	little    int     // the guest writes the cold set little by little, in so many parts of the delay; 0: at once
}

// sendAheadRun makes timer checkpoints over a gigabit. In the time between two the guest
// writes both sets, and the hot one again right before it stands still.
func sendAheadRun(b *testing.B, hot, cold, checkpoints int, way aheadWay) (r aheadRun) {
	b.Helper()
	const warm = 4
	pages := hot + cold + 64
	side := func() *written {
		mem, err := mapping.New(pages * ram.PageSize)
		if err != nil {
			b.Fatal(err)
		}
		return &written{mem: mem, dirty: ram.NewBitmap(pages)}
	}
	p, s := side(), side()
	defer mapping.Free(p.mem)
	defer mapping.Free(s.mem)
	blocks := func(w *written) []ram.Block { return []ram.Block{{Name: "ram", Host: w.mem}} }
	saver := ram.NewSaver(blocks(p), p, ram.SaverConfig{IterateBytes: 1 << 20})
	cache, err := ram.NewCache(blocks(s), s, ram.CacheConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer cache.Close()
	var ps, ss vmstate.Registry
	if err := errors.Join(saver.Register(&ps), cache.Register(&ss)); err != nil {
		b.Fatal(err)
	}
	pc, sc := loopback(b)
	ctx, cancel := context.WithCancel(context.Background())
	var bus, unheard event.Bus
	var paused, received time.Time
	var pauses, transfers, wholes []time.Duration
	ends := make(chan struct{})
	event.Subscribe(&bus, func(c event.CheckpointCommit) { // on the session's goroutine
		if way.little == 0 {
			p.write(0, hot+cold)
		}
		if c.Epoch <= warm {
			return
		}
		pauses = append(pauses, time.Duration(c.PauseNS))
		transfers = append(transfers, received.Sub(paused))
		wholes = append(wholes, time.Duration(c.TransferNS))
		r.bytes += c.Bytes
		r.pages += c.Pages
		if len(pauses) == checkpoints {
			close(ends)
			<-ctx.Done()
		}
	})
	lead, err := colo.NewPrimary(&slow.Gigabit{Conn: pc}, colo.PrimaryConfig{
		VM: p, State: &ps, RAM: saver, Events: &bus,
		CheckpointDelay: way.delay, AheadThreshold: way.threshold, EarlyShare: way.share,
		Step: func(op string, _ uint64) {
			switch op {
			case "pause":
				p.write(0, hot)
				paused = time.Now()
			case "expect vmstate-loaded":
				received = time.Now()
			}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	follow, err := colo.NewSecondary(sc, colo.SecondaryConfig{VM: s, State: &ss, RAM: cache, Events: &unheard})
	if err != nil {
		b.Fatal(err)
	}
	var sessions sync.WaitGroup
	ended := make(chan error, 2)
	if way.little > 0 {
		sessions.Go(func() {
			tick := time.NewTicker(way.delay / time.Duration(way.little))
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				p.write(0, hot)
				p.write(hot+n%way.little*cold/way.little, cold/way.little)
			}
		})
	}
	sessions.Go(func() { ended <- lead.Run(ctx) })
	sessions.Go(func() { ended <- follow.Run(ctx) })
	select {
	case <-ends:
	case err := <-ended:
		b.Error("a session has ended: ", err)
	}
	cancel()
	sessions.Wait()
	slices.Sort(pauses)
	slices.Sort(transfers)
	slices.Sort(wholes)
	if len(pauses) > 0 {
		r.pause, r.transfer, r.whole = pauses[len(pauses)/2], transfers[len(pauses)/2], wholes[len(pauses)/2]
	}
	return r
}

// BenchmarkSendAhead makes the same checkpoints with and without sending memory ahead, in
// turns, of a guest that writes a hot set all the time and a cold set once between two
// checkpoints, and reports what sending ahead costs and brings as ratios to going without.
func BenchmarkSendAhead(b *testing.B) {
	const delay = 5 * time.Millisecond
	compareAhead(b, 20, aheadWay{delay: delay, threshold: -1}, aheadWay{delay: delay, threshold: 1})
}

// BenchmarkSendEarly is the same for memory that is sent between checkpoints, of a guest that
// writes its cold set little by little from one checkpoint to the next. Nothing else is sent
// ahead: that is how a checkpoint is that a divergence has asked for.
func BenchmarkSendEarly(b *testing.B) {
	way := aheadWay{delay: 800 * time.Millisecond, threshold: -1, little: 40}
	early := way
	early.share = 0.5
	compareAhead(b, 10, way, early)
}

func compareAhead(b *testing.B, checkpoints int, plain, ahead aheadWay) {
	for name, sets := range map[string][2]int{"hot=400,cold=3600": {400, 3600}, "hot=1000,cold=3000": {1000, 3000}} {
		b.Run(name, func(b *testing.B) {
			var with, without aheadRun
			for b.Loop() {
				for _, run := range []struct {
					to  *aheadRun
					way aheadWay
				}{{&without, plain}, {&with, ahead}} {
					r := sendAheadRun(b, sets[0], sets[1], checkpoints, run.way)
					run.to.bytes += r.bytes
					run.to.pages += r.pages
					run.to.pause += r.pause
					run.to.transfer += r.transfer
					run.to.whole += r.whole
				}
			}
			b.ReportMetric(float64(with.bytes)/float64(without.bytes), "bytes-ratio")
			b.ReportMetric(float64(with.pause)/float64(without.pause), "pause-ratio")
			b.ReportMetric(float64(with.transfer)/float64(without.transfer), "transfer-ratio")
			b.ReportMetric(float64(with.whole)/float64(without.whole), "request-to-received-ratio")
		})
	}
}
