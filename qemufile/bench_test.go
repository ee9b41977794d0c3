package qemufile

import (
	"io"
	"net"
	"testing"
	"time"
)

const (
	benchPages = 4096 // 16 MiB of guest memory
	pageSize   = 4096
)

// BenchmarkReaderPages receives headers and pages over loopback TCP into guest
// memory. of-bare is its rate beside that of a bare read of the same bytes into
// the same memory, measured in the same run.
func BenchmarkReaderPages(b *testing.B) {
	guest := make([]byte, benchPages*pageSize)
	stream := benchPages * (pageSize + 8)
	receive := func(b *testing.B, n int, take func(net.Conn)) time.Duration {
		here, there := tcpPair(b)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p := make([]byte, 1<<20)
			for left := n * stream; left > 0; {
				m, err := here.Write(p[:min(len(p), left)])
				if err != nil {
					return
				}
				left -= m
			}
		}()
		start := time.Now()
		for range n {
			take(there)
		}
		d := time.Since(start)
		<-done
		return d
	}
	bare := func(c net.Conn) {
		for left := stream; left > 0; {
			n, err := c.Read(guest[:min(left, len(guest))])
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
	}
	var r *Reader
	pages := func(c net.Conn) {
		if r.src != c {
			r.Reset(c)
		}
		for i := range benchPages {
			r.BE64()
			r.ReadFull(guest[i*pageSize : (i+1)*pageSize])
		}
		if r.Err() != nil {
			b.Fatal(r.Err())
		}
	}
	r = NewReader(nil)
	var bareTime, pageTime time.Duration
	b.ReportAllocs()
	for range b.N {
		// By turns, because other work on the machine comes and goes.
		bareTime += receive(b, 4, bare)
		pageTime += receive(b, 4, pages)
	}
	gigabytes := float64(4*b.N*stream) / 1e9
	b.ReportMetric(gigabytes/bareTime.Seconds(), "bare-GB/s")
	b.ReportMetric(gigabytes/pageTime.Seconds(), "reader-GB/s")
	b.ReportMetric(bareTime.Seconds()/pageTime.Seconds(), "of-bare")
}

// BenchmarkWriterPages sends headers and pages by reference over loopback TCP.
// of-bare is its rate beside that of bare writes of 1 MiB of the same memory.
func BenchmarkWriterPages(b *testing.B) {
	guest := make([]byte, benchPages*pageSize)
	send := func(n int, give func(net.Conn)) time.Duration {
		here, there := tcpPair(b)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p := make([]byte, 1<<20)
			for {
				if _, err := there.Read(p); err != nil {
					return
				}
			}
		}()
		start := time.Now()
		for range n {
			give(here)
		}
		d := time.Since(start)
		here.Close()
		<-done
		return d
	}
	var w *Writer
	bare := func(c net.Conn) {
		for p := guest; len(p) > 0; p = p[1<<20:] {
			if _, err := c.Write(p[:1<<20]); err != nil {
				b.Fatal(err)
			}
		}
	}
	pages := func(c net.Conn) {
		if w.dst != io.Writer(c) {
			w.Reset(c)
		}
		for i := range benchPages {
			w.PutBE64(uint64(i) * pageSize)
			w.WriteRef(guest[i*pageSize : (i+1)*pageSize])
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	w = NewWriter(io.Discard)
	var bareTime, pageTime time.Duration
	b.ReportAllocs()
	for range b.N {
		bareTime += send(4, bare)
		pageTime += send(4, pages)
	}
	gigabytes := float64(4*b.N*benchPages*pageSize) / 1e9
	b.ReportMetric(gigabytes/bareTime.Seconds(), "bare-GB/s")
	b.ReportMetric(gigabytes/pageTime.Seconds(), "writer-GB/s")
	b.ReportMetric(bareTime.Seconds()/pageTime.Seconds(), "of-bare")
}

// BenchmarkPut is the cost of a value.
func BenchmarkPut(b *testing.B) {
	w := NewWriter(io.Discard)
	b.SetBytes(8)
	for b.Loop() {
		w.PutBE64(1)
	}
}

// BenchmarkGet is the cost of a value.
func BenchmarkGet(b *testing.B) {
	r := NewReader(zeros{})
	b.SetBytes(8)
	for b.Loop() {
		r.BE64()
	}
}
