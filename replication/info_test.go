package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

func TestInfoOfAPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, local, _, r := newPrimaryWith(t, PrimaryConfig{Name: "d", InSync: true})
		local.failWrite = func(int64, int) error { time.Sleep(3 * time.Millisecond); return nil }
		write(t, p, 0x22, 0, BlockSize)
		local.failWrite = nil
		r.setHang(true)
		write(t, p, 0x22, ChunkSize, 100)
		time.Sleep(2 * time.Second)
		must(t, p.link.Load().beginHold(1))
		write(t, p, 0x22, 2*ChunkSize, 512)
		read(t, p, 0, 512)
		i := p.Info()
		if i.Name != "d" || i.Size != testSize || i.State != Running {
			t.Errorf("%+v", i)
		}
		if w := i.IO.Write; w.Requests != 3 || w.Bytes != BlockSize+612 || w.InFlight != 0 || w.Errors != 0 || w.Latency.Count() != 3 {
			t.Errorf("writes: %+v", w)
		}
		if q := i.IO.Write.Latency.Quantile(1); q != 4096*time.Microsecond || i.IO.Write.Latency.Sum < 3*time.Millisecond {
			t.Errorf("the slowest write took less than %v, in sum %v; want the bucket of 3 ms", q, i.IO.Write.Latency.Sum)
		}
		if i.IO.Read.Requests != 1 || i.IO.Read.Bytes != 512 {
			t.Errorf("reads: %+v", i.IO.Read)
		}
		if i.InFlight != 2 || i.Held != 1 || i.HeldBytes < 512 || i.LagBytes != 3*ChunkSize || i.Lag < 2*time.Second {
			t.Errorf("on its way: %+v", i)
		}
		r.setHang(false)
		must(t, p.link.Load().Loaded(ctx, 1))
		must(t, p.Sync())
		i = p.Info()
		if i.InFlight != 0 || i.Held != 0 || i.Lag != 0 || i.IO.Flush.Requests != 1 {
			t.Errorf("after a flush: %+v", i)
		}
	})
}

// What was held until a checkpoint, and waits for room in the window now, is on its way too.
func TestInfoCountsTheWritesThatAreQueued(t *testing.T) {
	ctx := context.Background()
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{WindowRequests: 3})
	must(t, f.Mark(ctx, 1))
	for at := range int64(5) {
		forward1(t, f, 1, at<<16, BlockSize)
	}
	must(t, f.Loaded(ctx, 1)) // three are sent, two are queued
	var i PrimaryInfo
	f.info(&i, time.Now())
	if i.InFlight != 5 || i.InFlightBytes < 5*BlockSize {
		t.Errorf("%d writes of %d bytes are on their way, want 5 of %d", i.InFlight, i.InFlightBytes, 5*BlockSize)
	}
	must(t, f.Sync())
	i = PrimaryInfo{}
	f.info(&i, time.Now())
	if i.InFlight != 0 || i.InFlightBytes != 0 {
		t.Errorf("after a flush %d writes of %d bytes are on their way", i.InFlight, i.InFlightBytes)
	}
}

func TestInfoOfASecondary(t *testing.T) {
	s, _ := newSecondary(t, SecondaryConfig{Name: "d", ActiveBytes: 1 << 20, HiddenBytes: 2 << 20})
	write(t, s, 0x22, 0, BlockSize)
	write(t, s.Export(), 0x33, 0, BlockSize)
	_, err := s.ReadAt(make([]byte, 1), testSize)
	wantErr(t, "read", err, ErrRange)
	i := s.Info()
	if i.Name != "d" || i.State != Running || i.ActiveBound != 1<<20 || i.HiddenBound != 2<<20 || i.ActiveBytes == 0 || i.HiddenBytes == 0 {
		t.Errorf("%+v", i)
	}
	if i.IO.Write.Bytes != BlockSize || i.IO.Read.Errors != 1 {
		t.Errorf("%+v", i.IO)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	var s ioStats
	if n := testing.AllocsPerRun(100, func() { s.write.end(s.write.begin(), 1, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDiskInfoIsInfoAndWaitsForNobody(t *testing.T) {
	p, _, _, r := newPrimaryWith(t, PrimaryConfig{Name: "d", InSync: true})
	r.setHang(true)
	write(t, p, 0x22, 0, BlockSize)
	p.mu.Lock() // as while a connection is attached
	p.meta.mu.Lock()
	d := p.DiskInfo()
	p.meta.mu.Unlock()
	p.mu.Unlock()
	i := p.Info()
	if d.Name != "d" || d.Mode != event.ModePrimary || d.State != "running" || d.Size != i.Size || d.IO.Write != i.IO.Write ||
		d.InFlight != 1 || d.InFlightBytes != i.InFlightBytes || d.InFlightBytes < BlockSize || d.LagBytes != i.LagBytes || d.LagBytes == 0 {
		t.Errorf("%+v\nInfo: %+v", d, i)
	}
	r.setHang(false)

	s, _ := newSecondary(t, SecondaryConfig{Name: "e", ActiveBytes: 64 * BlockSize, HiddenBytes: 32 * BlockSize})
	write(t, s, 0x22, 0, BlockSize)
	write(t, s.Export(), 0x22, 0, 2*BlockSize)
	s.meta.mu.Lock()
	d = s.DiskInfo()
	s.meta.mu.Unlock()
	if d.Name != "e" || d.Mode != event.ModeSecondary || d.State != "running" || d.IO.Write.Requests != 1 ||
		d.ActiveBytes != 3*BlockSize || d.ActiveBound != 64*BlockSize || d.HiddenBytes != 4*BlockSize || d.HiddenBound != 32*BlockSize {
		t.Errorf("%+v", d)
	}
	if all := (Group{p, s, nil}).DiskInfo(); len(all) != 2 || all[0].Name != "d" || all[1].Name != "e" {
		t.Errorf("%+v", all)
	}
}
