package protect

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// BenchmarkSwitchover reports how long a guest of 16 MiB that is written to stands still
// in a switchover, in times of the pause of a checkpoint of the same run, as
// the two hosts take turns over TCP on loopback. With LateResume that pause lasts until
// the other host has the checkpoint, as a switchover does.
func BenchmarkSwitchover(b *testing.B) {
	for _, name := range []string{"plain", "TLS"} {
		b.Run(name, func(b *testing.B) { benchmarkSwitchover(b, name == "TLS", false) })
		b.Run(name+"/LateResume", func(b *testing.B) { benchmarkSwitchover(b, name == "TLS", true) })
	}
}

func benchmarkSwitchover(b *testing.B, secure, late bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	var mu sync.Mutex
	var pause time.Duration
	var pauses int
	bus := new(event.Bus)
	bus.SubscribeAll(func(r event.Record) {
		if c, ok := r.Event.(event.CheckpointCommit); ok && c.Mode == event.ModePrimary && c.Epoch > 0 {
			mu.Lock()
			defer mu.Unlock()
			pause, pauses = pause+time.Duration(c.PauseNS), pauses+1
		}
	})
	names := [2]string{"a", "b"}
	terms := [2]PortConfig{{Insecure: true}, {Insecure: true}}
	if secure {
		authority := newAuthority(b)
		for i, name := range names {
			terms[i] = PortConfig{TLS: authority.host(b, name)}
		}
	}
	var ports [2]*Port
	for i := range ports {
		var err error
		if ports[i], err = Listen("127.0.0.1:0", terms[i]); err != nil {
			b.Skip(err)
		}
		group.Go(func() { ports[i].Serve(ctx) })
	}
	store := new(failovertest.Store)
	var jobs [2]*Job
	for i, name := range names {
		g, err := colotest.NewGuest(colotest.GuestConfig{Pages: 4000, Touch: 8, Seed: 1, Interval: time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		defer g.Close()
		cfg := Config{
			Name: "g", Host: name, Guest: g, Start: i == 0, Arbiter: failover.NewStoreArbiter(store), Events: bus, CheckpointDelay: 20 * time.Millisecond, LateResume: late,
			Peer: Peer{Port: ports[i], Dial: ports[1-i].Addr().String(), PortConfig: terms[i]},
		}
		if secure {
			cfg.Peer.Name = names[1-i]
		}
		if jobs[i], err = New(cfg); err != nil {
			b.Fatal(err)
		}
	}
	var guests sync.WaitGroup
	defer guests.Wait()
	defer cancel()
	for i := range jobs {
		guests.Go(func() { jobs[i].cfg.Guest.(*colotest.Guest).Run(ctx) })
		guests.Go(func() { jobs[i].Run(ctx) })
	}
	var down time.Duration
	at := 0
	for b.Loop() {
		wait, stop := context.WithTimeout(ctx, time.Minute)
		s, err := jobs[at].Wait(wait, Protected)
		stop()
		if s != Protected {
			b.Fatal(s, err, jobs[at].Query().LastError)
		}
		for before := jobs[at].Query().Stats.Checkpoints; jobs[at].Query().Stats.Checkpoints < before+5; {
			time.Sleep(time.Millisecond)
		}
		if err := jobs[at].Switchover(ctx); err != nil {
			b.Fatal(err)
		}
		down += jobs[at].Query().Stats.Downtime
		at = 1 - at
	}
	mu.Lock()
	defer mu.Unlock()
	each := pause / time.Duration(max(pauses, 1))
	b.ReportMetric(float64(down/time.Duration(b.N))/float64(max(each, 1)), "downtime/pause")
	b.ReportMetric(float64(each.Microseconds()), "µs-pause")
	b.ReportMetric(0, "ns/op")
}
