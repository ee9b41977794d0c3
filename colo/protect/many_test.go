//go:build unix

package protect

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// many has guests that two hosts protect over one port each, by TCP on loopback.
type many struct {
	ports [2]*Port
	jobs  []*Job // of the primary's host
	end   func()
}

// startMany starts n idle guests and returns when all are protected.
func startMany(t testing.TB, n int) *many {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	m := new(many)
	for i := range m.ports {
		p, err := Listen("127.0.0.1:0", PortConfig{Insecure: true})
		if err != nil {
			t.Skip(err)
		}
		m.ports[i] = p
		group.Go(func() { p.Serve(ctx) })
	}
	var guests []*colotest.VM
	for i := range n {
		store := new(failovertest.Store)
		for host, name := range []string{"b", "a"} { // the one that waits first
			g, err := colotest.NewVM(colotest.VMConfig{Pages: 4, Interval: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			guests = append(guests, g)
			j, err := New(Config{
				Name: fmt.Sprint("guest ", i), Host: name, Guest: g, Start: name == "a", Arbiter: failover.NewStoreArbiter(store),
				Peer: Peer{Port: m.ports[host], Dial: m.ports[1-host].Addr().String(), PortConfig: PortConfig{Insecure: true}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if name == "a" {
				m.jobs = append(m.jobs, j)
			}
			group.Go(func() { j.Run(ctx) })
		}
	}
	m.end = func() {
		cancel()
		group.Wait()
		for _, g := range guests {
			g.Close()
		}
	}
	for _, j := range m.jobs {
		wait, stop := context.WithTimeout(ctx, time.Minute)
		if s, err := j.Wait(wait, Protected); s != Protected {
			t.Errorf("%v, %v, %v", s, err, j.Query().LastError)
		}
		stop()
	}
	return m
}

// protected reports whether all guests are.
func (m *many) protected() bool {
	return !slices.ContainsFunc(m.jobs, func(j *Job) bool { return j.State() != Protected })
}

// A guest more costs as many goroutines as the one before it.
func TestManyGuestsShareOnePairOfPorts(t *testing.T) {
	many, looks := 20, 100
	if testing.Short() {
		many, looks = 8, 10
	}
	per := func(n, most int) (got int) {
		// What a goroutine starts has its labels: those of other tests, which may
		// still be ending, are not counted.
		guests := fmt.Sprint(n)
		pprof.Do(t.Context(), pprof.Labels("guests", guests), func(context.Context) {
			m := startMany(t, n)
			defer m.end()
			// The least of a while, since some are on their way at any moment: on a busy
			// machine of a longer one. While a session is made again, which was lost there,
			// its guest has fewer.
			got = math.MaxInt
			begin := time.Now()
			for i := 0; i < looks || (got-1)/n > most && time.Since(begin) < time.Minute; {
				time.Sleep(5 * time.Millisecond)
				before, now := m.protected(), labelled(t, "guests", guests)
				if before && m.protected() {
					got = min(got, now)
					i++
				} else if time.Since(begin) > time.Minute {
					t.Fatal("the guests are not protected for long")
				}
			}
		})
		return (got - 1) / n // this one is none of a guest's
	}
	few := per(2, math.MaxInt)
	lot := per(many, few+few/4)
	if few == 0 || lot > few+few/4 {
		t.Errorf("%d goroutines for each of %d guests, %d for each of 2", lot, many, few)
	}
}

// labelled counts the goroutines that have a label.
func labelled(t *testing.T, key, value string) (n int) {
	t.Helper()
	var profile strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		t.Fatal(err)
	}
	of := 0 // how many goroutines have the stack that follows
	for line := range strings.Lines(profile.String()) {
		if fmt.Sscanf(line, "%d @", &of); strings.HasPrefix(line, "# labels:") && strings.Contains(line, fmt.Sprintf("%q:%q", key, value)) {
			n += of
		}
	}
	return n
}

// BenchmarkIdleGuests reports what each of n guests costs that do nothing and are
// protected, both hosts of each together: checkpoints every 100 ms. The memory is that
// which they hold in the end; with -benchtime 15x the synchronisation is long over.
func BenchmarkIdleGuests(b *testing.B) {
	for _, n := range []int{1, 10, 100, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var before, after runtime.MemStats
			goroutines := runtime.NumGoroutine()
			runtime.GC()
			runtime.ReadMemStats(&before)
			m := startMany(b, n)
			defer m.end()
			threads := runtime.NumGoroutine() - goroutines
			made := func() (sum uint64) {
				for _, j := range m.jobs {
					sum += j.Query().Stats.Checkpoints
				}
				return sum
			}
			cpu, checkpoints := cpuTime(), made()
			b.ResetTimer()
			begin := time.Now()
			for b.Loop() {
				time.Sleep(time.Second)
			}
			b.StopTimer()
			spent, wall := cpuTime()-cpu, time.Since(begin)
			runtime.GC()
			runtime.ReadMemStats(&after)
			memory := after.HeapAlloc + after.StackInuse - before.HeapAlloc - before.StackInuse
			b.ReportMetric(100*spent.Seconds()/wall.Seconds()/float64(n), "%CPU/guest")
			b.ReportMetric(float64(made()-checkpoints)/wall.Seconds()/float64(n), "checkpoints/s/guest")
			b.ReportMetric(float64(threads)/float64(n), "goroutines/guest")
			b.ReportMetric(float64(memory)/1024/float64(n), "KiB/guest")
			b.ReportMetric(0, "ns/op")
		})
	}
}
