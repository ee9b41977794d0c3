package filter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
)

// duplex is a connection of two halves.
type duplex struct {
	io.Reader
	io.Writer
}

// Packets of any length, each of which is its number again and again behind a virtio-net
// header, come out of an outbox as they went in: in their order, between the same markers,
// without those that it has reported as lost. That the writer is slow does not matter,
// nor that what waits is dropped while a large one is being written.
func TestAnOutboxWritesWhatItWasGiven(t *testing.T) {
	for _, vnet := range []bool{false, true} {
		for seed := range uint64(6) {
			synctest.Test(t, func(t *testing.T) { outboxWrites(t, vnet, seed) })
		}
	}
}

func outboxWrites(t *testing.T, vnet bool, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 9))
	r, w := io.Pipe()
	out := filter.NewOutbox(1) // the least
	cfg := filter.ConnConfig{VNetHdr: vnet, Marks: true}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	to := filter.NewConn(duplex{nil, w}, cfg)
	run.Go(func() {
		out.Run(ctx, to)
		w.Close()
	})
	var marks []uint64
	cfg.OnMark = func(epoch uint64) error { marks = append(marks, epoch); return nil }
	in := filter.NewConn(duplex{r, nil}, cfg)
	got := make(chan uint32, 1<<12)
	run.Go(func() {
		defer close(got)
		for {
			p, err := in.ReadPacket()
			if err != nil {
				if err != io.EOF {
					t.Errorf("seed %d: %v", seed, err)
				}
				return
			}
			n := binary.BigEndian.Uint32(p)
			if !bytes.Equal(p, frameOf(n, len(p))) || vnet && in.VNetHdrLen() != int(n%3)*10 {
				t.Errorf("seed %d: packet %d of %d bytes, with a header of %d, is another", seed, n, len(p), in.VNetHdrLen())
			}
			got <- n
		}
	})
	drained := func() {
		for out.Pending() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	sent, epoch := uint32(0), uint64(0)
	for range 400 {
		size := 4 + 16 + rnd.IntN(1<<rnd.IntN(17))
		f := filter.Frame{Data: frameOf(sent, min(size, filter.MaxFrame)), VNetHdr: int(sent%3) * 10}
		if err := out.WriteFrame(f); err != nil && err != filter.ErrFull {
			t.Fatal(err)
		}
		sent++
		if rnd.IntN(40) == 0 {
			out.Mark(epoch)
			epoch++
		}
		if rnd.IntN(40) == 0 {
			drained() // however slow the writer is, some come out
		}
		if rnd.IntN(100) == 0 {
			out.Failover()
			out.Mark(epoch)
			epoch++
		}
	}
	drained()
	out.Mark(epoch)
	drained()
	cancel()
	out.Mark(epoch + 1) // it looks again
	run.Wait()
	last, n := int64(-1), uint64(0)
	for k := range got {
		if int64(k) <= last {
			t.Fatalf("seed %d: packet %d comes after %d", seed, k, last)
		}
		last = int64(k)
		n++
	}
	if n+out.LostFrames() > uint64(sent)+epoch || n < 20 { // markers may be among those
		t.Errorf("seed %d: %d of %d packets came, %d are lost", seed, n, sent, out.LostFrames())
	}
	for i, m := range marks {
		if i > 0 && m <= marks[i-1] {
			t.Errorf("seed %d: marker %d comes after %d", seed, m, marks[i-1])
		}
	}
}

// frameOf returns n bytes that say k.
func frameOf(k uint32, n int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint32(nil, k), n/4+1)[:n]
}

// stuck is a connection that shows what it is to write, and writes it when it is let go.
type stuck struct {
	io.Reader
	shows, goes chan struct{}
	now, wrote  []byte
	err         error
}

func (s *stuck) Write(b []byte) (int, error) {
	s.now = b
	s.shows <- struct{}{}
	<-s.goes
	s.wrote = append(s.wrote, b...)
	return len(b), s.err
}

func TestALargePacketIsNotCopiedAndStaysAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := filter.NewOutbox(1)
		conn := &stuck{shows: make(chan struct{}), goes: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		var ended error
		var run sync.WaitGroup
		run.Go(func() { ended = out.Run(ctx, filter.NewConn(conn, filter.ConnConfig{Marks: true})) })
		large := frameOf(7, 60000)
		out.WriteFrame(filter.Frame{Data: large})
		out.WriteFrame(filter.Frame{Data: frameOf(8, 40)})
		<-conn.shows
		want := append(binary.BigEndian.AppendUint32(nil, 60000), large...)
		if !bytes.Equal(conn.now, want) {
			t.Fatal("another packet is written")
		}
		for out.WriteFrame(filter.Frame{Data: frameOf(9, 60000)}) == nil {
		}
		lost := out.LostFrames()
		waits := out.Pending()
		out.Mark(0) // there is room for it, or the others make some
		for k := range uint64(8 << 10) {
			out.Mark(1 + k)
		}
		if got := out.LostFrames() - lost; got == 0 || got >= 8<<10+uint64(waits) {
			t.Errorf("%d were dropped for markers", got)
		}
		out.Failover()
		out.Mark(1 << 20)
		for range 4 {
			out.WriteFrame(filter.Frame{Data: frameOf(10, 60000)})
		}
		if !bytes.Equal(conn.now, want) {
			t.Error("it has changed while it was written")
		}
		conn.goes <- struct{}{}
		<-conn.shows // the marker, and only that
		if n := len(conn.now); n != 12 {
			t.Errorf("%d bytes follow", n)
		}
		conn.goes <- struct{}{}
		<-conn.shows
		conn.err = io.ErrClosedPipe
		conn.goes <- struct{}{}
		run.Wait()
		if !errors.Is(ended, io.ErrClosedPipe) || out.Pending() != 3 {
			t.Errorf("%v, %d wait", ended, out.Pending())
		}
		cancel()
	})
}
