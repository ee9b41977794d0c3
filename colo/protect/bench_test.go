package protect

import (
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// BenchmarkSwitchover reports how long a guest of 16 MiB that is written to stands still
// in a switchover, in times of the pause of a checkpoint of the same run, as
// the two hosts take turns over TCP on loopback. With LateResume that pause lasts until
// the other host has the checkpoint, as a switchover does. The ratio is given of the means,
// and of the medians, in which a busy machine's scheduler has less of a say. Downtime is as the old
// primary measures it, which hears last that the guest runs; standing is from the guest's last instruction on
// one host to its first on the other, which is known here alone: both hosts have one clock.
func BenchmarkSwitchover(b *testing.B) {
	for _, name := range []string{"plain", "TLS"} {
		b.Run(name, func(b *testing.B) { benchmarkSwitchover(b, name == "TLS", false) })
		b.Run(name+"/LateResume", func(b *testing.B) { benchmarkSwitchover(b, name == "TLS", true) })
	}
}

func benchmarkSwitchover(b *testing.B, secure, late bool) {
	x := newBenchHosts(b, secure, colotest.VMConfig{Pages: 4000, Touch: 8, Seed: 1, Interval: time.Millisecond})
	change := func(c *Config) { c.LateResume = late }
	hosts := []*benchHost{x.boot(0, true, nil, change), x.boot(1, false, nil, change)}
	for _, h := range hosts {
		defer h.end()
	}
	var down time.Duration
	var downs, lost, stood []time.Duration
	at := 0
	for b.Loop() {
		job := hosts[at].job
		x.is(hosts[at], Protected)
		for before := job.Query().Stats.Checkpoints; job.Query().Stats.Checkpoints < before+5; {
			time.Sleep(time.Millisecond)
		}
		if err := job.Switchover(x.ctx); err != nil {
			b.Fatal(err)
		}
		downs = append(downs, job.Query().Stats.Downtime)
		down += downs[len(downs)-1]
		lost = append(lost, x.lastStood())
		at = 1 - at
	}
	var pause time.Duration
	pauses := 0
	for _, c := range x.taken() {
		if c.Epoch > 0 {
			stood = append(stood, time.Duration(c.PauseNS))
			pause, pauses = pause+time.Duration(c.PauseNS), pauses+1
		}
	}
	each := pause / time.Duration(max(pauses, 1))
	b.ReportMetric(float64(down/time.Duration(b.N))/float64(max(each, 1)), "downtime/pause")
	if len(stood) > 0 {
		slices.Sort(downs)
		slices.Sort(stood)
		slices.Sort(lost)
		b.ReportMetric(float64(downs[len(downs)/2].Nanoseconds())/1000, "µs-p50-downtime")
		b.ReportMetric(float64(stood[len(stood)/2].Nanoseconds())/1000, "µs-p50-pause")
		b.ReportMetric(float64(lost[len(lost)/2])/float64(max(stood[len(stood)/2], 1)), "p50-standing/p50-pause")
		b.ReportMetric(float64(downs[len(downs)/2])/float64(max(stood[len(stood)/2], 1)), "p50-downtime/p50-pause")
		b.ReportMetric(float64(downs[len(downs)/2])/float64(stood[len(stood)/2]+2*roundTrip(b)), "p50-downtime/bound")
	}
	b.ReportMetric(float64(each.Microseconds()), "µs-pause")
	b.ReportMetric(0, "ns/op")
}

// roundTrip returns the median time of a byte there and back between two goroutines of this process,
// over the same loopback, which have waited for a while, as those of a session have: no switchover is
// shorter than a pause and two of these. The last checkpoint goes there; the other side says that it has it, and
// the output up to there may leave; it is told that it has left, and may go on; and it says that the
// guest runs, which ends the downtime.
func roundTrip(b *testing.B) time.Duration {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	echoed := make(chan error, 1)
	go func() { // joined below
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			_, err = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
		}
		echoed <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for one := []byte{0}; len(took) < 200; {
		time.Sleep(time.Millisecond)
		begun := time.Now()
		if _, err := conn.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	conn.Close()
	if err := <-echoed; err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// BenchmarkLossToRunning is the time from the moment in which a secondary knows that its
// primary is lost, and an operator or a fencer says so, to that in which its guest runs. No
// arbiter is asked, and there is no disk.
func BenchmarkLossToRunning(b *testing.B) {
	x := newBenchHosts(b, false, colotest.VMConfig{Pages: 256, Touch: 8, Interval: time.Millisecond})
	var took []time.Duration
	for b.Loop() {
		x.store = new(failovertest.Store)
		follows := x.boot(1, false, nil, nil)
		leads := x.boot(0, true, nil, nil)
		x.is(leads, Protected)
		x.is(follows, Following)
		time.Sleep(50 * time.Millisecond) // a checkpoint or two
		// The primary falls silent, with all its connections.
		leads.cut()
		follows.cut()
		x.is(follows, Asking)
		begun := time.Now()
		if err := follows.job.Fenced(); err != nil {
			b.Fatal(err)
		}
		for follows.guest.Paused() {
			time.Sleep(20 * time.Microsecond)
		}
		took = append(took, time.Since(begun))
		leads.end()
		follows.end()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkProtectAgain is the longest pause of a guest of 1 GiB, which writes 8 pages each
// millisecond, while a secondary that was lost is replaced by one that has nothing, to the
// longest pause of its checkpoints in the two seconds before: medians of the turns.
func BenchmarkProtectAgain(b *testing.B) {
	if testing.Short() {
		b.Skip("3 GiB of memory")
	}
	const size = 1 << 30
	for _, name := range []string{"copy", "no copy"} {
		b.Run(name, func(b *testing.B) {
			benchmarkProtectAgain(b, size, func(c *Config) { c.NoMemoryCopy = name == "no copy" })
		})
	}
}

func benchmarkProtectAgain(b *testing.B, size uint64, change func(*Config)) {
	x := newBenchHosts(b, false, colotest.VMConfig{Memory: size, Pages: 4000, Touch: 8, Interval: time.Millisecond})
	leads := x.boot(0, true, func(mem []byte) {
		for at := size / 8; at < size; at += ram.PageSize {
			mem[at] = byte(at>>12) | 1 // no page is zero
		}
	}, change)
	defer leads.end()
	longest := func(list []event.CheckpointCommit) (p time.Duration) {
		for _, c := range list {
			p = max(p, time.Duration(c.PauseNS))
		}
		return p
	}
	var before, during []time.Duration // of each turn
	var took time.Duration
	for b.Loop() {
		follows := x.boot(1, false, nil, change)
		x.is(leads, Protected)
		x.taken()
		time.Sleep(2 * time.Second)
		before = append(before, longest(x.taken()))
		follows.end()
		x.is(leads, Alone)
		x.taken()
		begun := time.Now()
		follows = x.boot(1, false, nil, change)
		x.is(leads, Protected)
		took += time.Since(begun)
		time.Sleep(100 * time.Millisecond)
		during = append(during, longest(x.taken()))
		follows.end()
		x.is(leads, Alone)
	}
	slices.Sort(before)
	slices.Sort(during)
	each := before[len(before)/2]
	b.ReportMetric(float64(during[len(during)/2])/float64(each), "pause/pause")
	b.ReportMetric(float64(each.Microseconds()), "µs-pause-before")
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms-to-protected")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSynchronisation is the rate at which 512 MiB of memory reach a new secondary, to
// that of the same bytes over one connection of the same kind, which nobody looks at. of-bound-cpu
// is the processor time of both hosts to that of both ends of that connection, which a busy
// machine disturbs less.
func BenchmarkSynchronisation(b *testing.B) {
	const size = 512 << 20
	for _, name := range []string{"plain", "TLS"} {
		b.Run(name, func(b *testing.B) {
			x := newBenchHosts(b, name == "TLS", colotest.VMConfig{Memory: size, Pages: 256, Touch: 1, Interval: 10 * time.Millisecond})
			leads := x.boot(0, true, func(mem []byte) { rand.Read(mem[size/16:]) }, nil)
			defer leads.end()
			var ours, bound, oursCPU, boundCPU []time.Duration
			for b.Loop() {
				x.is(leads, Alone)
				x.taken()
				follows := x.boot(1, false, nil, nil)
				x.is(leads, Synchronising)
				begun, used := time.Now(), cpuTime()
				x.is(leads, Protected)
				ours, oursCPU = append(ours, time.Since(begun)), append(oursCPU, cpuTime()-used)
				follows.end()
				used = cpuTime()
				bound = append(bound, x.carry(name == "TLS", leads.guest.Memory()))
				boundCPU = append(boundCPU, cpuTime()-used)
			}
			best := slices.Min(bound)
			if least := slices.Min(boundCPU); least > 0 {
				b.ReportMetric(float64(slices.Min(oursCPU))/float64(least), "of-bound-cpu")
				b.ReportMetric(float64(slices.Min(oursCPU).Milliseconds()), "ms-cpu")
			}
			b.ReportMetric(float64(best)/float64(slices.Min(ours)), "of-bound")
			b.ReportMetric(size/best.Seconds()/1e6, "MB/s-bound")
			b.ReportMetric(size/slices.Min(ours).Seconds()/1e6, "MB/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// carry is how long memory takes over a connection.
func (x *benchHosts) carry(secure bool, mem []byte) time.Duration {
	x.b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		x.b.Skip(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		if secure {
			conn = tls.Server(conn, x.terms[1].TLS)
		}
		// It is put where a page is, as a secondary does.
		_, err = io.ReadFull(conn, make([]byte, len(mem)))
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		x.b.Fatal(err)
	}
	defer conn.Close()
	if secure {
		cfg := x.terms[0].TLS.Clone()
		cfg.ServerName = "b"
		conn = tls.Client(conn, cfg)
	}
	begun := time.Now()
	for at := 0; at < len(mem); at += 1 << 20 {
		if _, err := conn.Write(mem[at:min(at+1<<20, len(mem))]); err != nil {
			x.b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		x.b.Fatal(err)
	}
	return time.Since(begun)
}
