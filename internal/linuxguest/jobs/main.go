// Command jobs is the work of a protected Linux guest: it counts, computes a
// checksum over memory, writes a log to a disk with an fsync after each entry,
// and tells of it over TCP. See package job.
//
//	jobs REPORT-PORT CHUNK-PORT LOG-FILE
//
// A connection to the report port gets a record ten times a second; what the
// client sends there, "stop", ends the guest's work after a last record. On the
// chunk port the client asks with a number, eight bytes, for that chunk: the
// answer depends on nothing else, so that two guests agree on it. Numbers that
// do not count up are an error of the client, and end the connection.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/internal/linuxguest/job"
)

// How often what happens. A guest that never rests would keep its host from
// doing anything else, where there are few CPUs.
const (
	reportEvery = 100 * time.Millisecond
	entryEvery  = 100 * time.Millisecond
	passEvery   = 20 * time.Millisecond
	countEvery  = time.Millisecond
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "jobs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("want REPORT-PORT CHUNK-PORT LOG-FILE")
	}
	reports, err := net.Listen("tcp4", ":"+args[0])
	if err != nil {
		return err
	}
	defer reports.Close()
	chunks, err := net.Listen("tcp4", ":"+args[1])
	if err != nil {
		return err
	}
	defer chunks.Close()
	return work(reports, chunks, args[2])
}

// work does the jobs for one client, until that says stop.
func work(reports, chunks net.Listener, file string) error {
	g := &guest{}
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var jobs sync.WaitGroup
	begin := func(what string, fn func(context.Context) error) {
		jobs.Go(func() {
			if err := fn(ctx); err != nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	begin("count", g.count)
	begin("checksum", g.checksum)
	begin("log", func(ctx context.Context) error { return g.log(ctx, file) })
	jobs.Go(func() { accept(chunks, g.chunk) })
	fmt.Println("guest: jobs run")

	conn, err := reports.Accept()
	if err != nil {
		return err
	}
	asked := make(chan struct{})
	jobs.Go(func() {
		defer close(asked)
		if line, _ := bufio.NewReader(conn).ReadString('\n'); line != "stop\n" {
			stop(fmt.Errorf("the client's connection ended with %q", line))
		}
	})
	err = g.report(ctx, conn, asked)
	stop(err) // nil is the client's order
	if err != nil {
		conn.Close() // ends the wait for an order
	}
	chunks.Close()
	jobs.Wait()
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if err == nil {
		// Whatever the jobs have done since is in the last record.
		err = g.tell(conn, true)
	}
	err = errors.Join(err, conn.Close())
	fmt.Println("guest: jobs end")
	return err
}

// guest counts what the jobs have done so far.
type guest struct {
	counter, synced, chunks atomic.Uint64

	mu  sync.Mutex
	sum job.Record // Pass, Integer and Double

	seq uint64 // the number of the next report
}

func (g *guest) count(ctx context.Context) error {
	for tick := time.NewTicker(countEvery); ctx.Err() == nil; {
		for range 1000 {
			g.counter.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

func (g *guest) checksum(ctx context.Context) error {
	c := job.NewChecksum()
	for tick := time.NewTicker(passEvery); ctx.Err() == nil; {
		c.Next()
		g.mu.Lock()
		g.sum = job.Record{Pass: c.Pass, Integer: c.Integer, Double: c.Double}
		g.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// log appends entries to a file, each made stable before it is counted.
func (g *guest) log(ctx context.Context, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	var entry []byte
	for tick := time.NewTicker(entryEvery); ctx.Err() == nil; {
		entry = job.AppendEntry(entry[:0], g.synced.Load())
		if _, err := f.Write(entry); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
		g.synced.Add(1)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return f.Close()
}

func (g *guest) report(ctx context.Context, conn net.Conn, asked <-chan struct{}) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-asked:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if err := g.tell(conn, false); err != nil {
			return err
		}
	}
}

func (g *guest) tell(conn net.Conn, last bool) error {
	g.mu.Lock()
	r := g.sum
	g.mu.Unlock()
	r.Seq, r.Counter, r.Synced, r.Chunks, r.Last = g.seq, g.counter.Load(), g.synced.Load(), g.chunks.Load(), last
	g.seq++
	line, err := r.AppendText(nil)
	if err != nil {
		return err
	}
	_, err = conn.Write(line)
	return err
}

// chunk answers a client's requests until it leaves.
func (g *guest) chunk(conn net.Conn) {
	defer conn.Close()
	var ask [8]byte
	var answer []byte
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(conn, ask[:]); err != nil {
			return
		}
		if got := binary.BigEndian.Uint64(ask[:]); got != n {
			fmt.Printf("guest: chunk %d was asked for, %d comes next\n", got, n)
			return
		}
		answer = job.AppendChunk(answer[:0], n)
		g.chunks.Add(1)
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// accept serves connections until the listener is closed, and closes them then.
func accept(l net.Listener, serve func(net.Conn)) {
	var conns []net.Conn
	var group sync.WaitGroup
	for {
		conn, err := l.Accept()
		if err != nil {
			break
		}
		conns = append(conns, conn)
		group.Go(func() { serve(conn) })
	}
	for _, c := range conns {
		c.Close()
	}
	group.Wait()
}
