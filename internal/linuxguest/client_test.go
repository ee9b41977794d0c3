package linuxguest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/linuxguest/job"
)

// A liar is a guest whose records, chunks and life can be tampered with.
type liar struct {
	record func(r *job.Record)
	chunk  func(n uint64, p []byte)
	chunks int // so many, then the connection ends; 0: no end
}

// serve is the guest's work, until the client says stop.
func (l liar) serve(reports, chunks net.Conn) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		defer chunks.Close()
		for n := uint64(0); l.chunks == 0 || n < uint64(l.chunks); n++ {
			var ask [8]byte
			if _, err := io.ReadFull(chunks, ask[:]); err != nil {
				return
			}
			p := job.AppendChunk(nil, binary.BigEndian.Uint64(ask[:]))
			if l.chunk != nil {
				l.chunk(n, p)
			}
			if _, err := chunks.Write(p); err != nil {
				return
			}
		}
	})
	stop := make(chan struct{})
	group.Go(func() {
		defer close(stop)
		io.ReadFull(reports, make([]byte, 5))
	})
	defer reports.Close()
	sum := job.NewChecksum()
	for n := uint64(0); ; n++ {
		last := false
		select {
		case <-stop:
			last = true
		case <-time.After(100 * time.Millisecond):
		}
		if n > 0 {
			sum.Next()
		}
		r := job.Record{Seq: n, Counter: 1000 * n, Pass: sum.Pass, Integer: sum.Integer, Double: sum.Double, Synced: n / 2, Last: last}
		if l.record != nil {
			l.record(&r)
		}
		line, _ := r.AppendText(nil)
		if _, err := reports.Write(line); err != nil || last {
			return
		}
	}
}

// listen runs a client on a guest for so long and then stops it.
func (l liar) listen(t *testing.T, d time.Duration) (*Client, error) {
	t.Helper()
	r1, r2 := net.Pipe()
	c1, c2 := net.Pipe()
	c := NewClient(r1, c1)
	var group sync.WaitGroup
	group.Go(func() { l.serve(r2, c2) })
	done := make(chan error, 1)
	group.Go(func() { done <- c.Run(context.Background()) })
	var err error
	select {
	case err = <-done:
	case <-time.After(d):
		if e := c.Stop(); e != nil {
			t.Error(e)
		}
		err = <-done
	}
	group.Wait()
	return c, err
}

func TestAClientBelievesAnHonestGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := liar{}.listen(t, 3*time.Second)
		p, kept := c.Progress()
		if err != nil || kept != nil || !p.Record.Last || p.Record.Seq < 25 || p.Chunks < 50 {
			t.Errorf("%+v: %v, %v", p, err, kept)
		}
	})
}

func TestAClientNoticesEveryLie(t *testing.T) {
	at := func(n uint64, fn func(*job.Record)) func(*job.Record) {
		return func(r *job.Record) {
			if r.Seq == n {
				fn(r)
			}
		}
	}
	for name, l := range map[string]liar{
		"a record is missing":               {record: func(r *job.Record) { r.Seq += r.Seq / 10 }},
		"a record comes twice":              {record: at(10, func(r *job.Record) { r.Seq-- })},
		"the first record is not the first": {record: func(r *job.Record) { r.Seq++ }},
		"the counter goes back":             {record: at(10, func(r *job.Record) { r.Counter = 8999 })},
		"a stable entry is gone":            {record: at(10, func(r *job.Record) { r.Synced = 3 })},
		"the integers are wrong":            {record: at(10, func(r *job.Record) { r.Integer ^= 1 })},
		"the doubles are wrong":             {record: at(10, func(r *job.Record) { r.Double ^= 1 })},
		"a pass goes back":                  {record: at(10, func(r *job.Record) { r.Pass = 8 })},
		"it ends unasked":                   {record: at(10, func(r *job.Record) { r.Last = true })},
		"a chunk is wrong": {chunk: func(n uint64, p []byte) {
			if n == 10 {
				p[job.ChunkSize-1]++
			}
		}},
		"the chunks end": {chunks: 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := l.listen(t, 3*time.Second)
				if err == nil {
					t.Fatal("no error")
				}
				if l.chunks == 0 && !errors.Is(err, ErrWrong) {
					t.Errorf("got %v", err)
				}
				if _, kept := c.Progress(); kept != err {
					t.Errorf("Progress has %v, Run %v", kept, err)
				}
			})
		})
	}
}

func TestSilenceIsMeasuredAtTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(nil, nil)
		after := func(d time.Duration) {
			time.Sleep(d)
			c.hear()
		}
		after(time.Minute)
		time.Sleep(200 * time.Millisecond)
		c.Watch()
		if ended, longest := c.Silence(); ended != 0 || longest != 0 {
			t.Errorf("before anything came: %v, %v", ended, longest)
		}
		after(time.Millisecond) // it was on its way
		after(3 * time.Second)
		after(time.Second)
		if ended, longest := c.Silence(); ended != 3001*time.Millisecond || longest != 3*time.Second {
			t.Errorf("the silence ended after %v and was %v long", ended, longest)
		}
	})
}

func TestALogMustHaveWhatWasSaidToBeStable(t *testing.T) {
	var log []byte
	for n := range uint64(5) {
		log = job.AppendEntry(log, n)
	}
	if n, err := CheckLog(log, 5); n != 5 || err != nil {
		t.Errorf("the whole log: %d, %v", n, err)
	}
	if _, err := CheckLog(log, 6); err == nil {
		t.Error("an entry is missing, and nobody noticed")
	}
	if _, err := CheckLog(log[:len(log)-1], 4); err == nil {
		t.Error("half an entry was not noticed")
	}
	log[job.EntrySize*3+100]++
	if n, err := CheckLog(log, 2); err == nil || n != 3 {
		t.Errorf("a damaged entry: %d, %v", n, err)
	}
}
