package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var dumpPages = flag.Int("dump.pages", 1<<16, "pages in the stream of BenchmarkDump")

// BenchmarkDump compares a dump of a long stream with reading the file: "of-read"
// is how often the time of the latter. -dump.pages 1048576 makes the stream 4 GiB long.
func BenchmarkDump(b *testing.B) {
	pages := uint64(*dumpPages)
	name := filepath.Join(b.TempDir(), "long.mig")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	page := bytes.Repeat([]byte{1, 2, 3, 4}, ram.PageSize/4)
	w := qemufile.NewWriter(f)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
	vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
	list := ram.Record{Kind: ram.KindBlockList, Total: pages * ram.PageSize, Blocks: []ram.BlockInfo{{Name: "ram", Length: pages * ram.PageSize}}}
	list.Put(w, ram.Format{})
	for i := range pages {
		rec := ram.Record{Kind: ram.KindPage, Block: "ram", Continue: i > 0, Offset: i * ram.PageSize, Data: page}
		rec.Put(w, ram.Format{})
	}
	w.PutBE64(0x10)
	vmstate.PutFooter(w, 2)
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	f.Close()
	b.SetBytes(int64(pages) * ram.PageSize)
	b.ReportAllocs()
	var dump, read time.Duration
	for b.Loop() {
		start := time.Now()
		if status := streamdump([]string{name}, nil, io.Discard, io.Discard); status != 0 {
			b.Fatal(status)
		}
		dump += time.Since(start)
		start = time.Now()
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 128<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				break
			}
		}
		f.Close()
		read += time.Since(start)
	}
	b.ReportMetric(float64(dump)/float64(read), "of-read")
}
