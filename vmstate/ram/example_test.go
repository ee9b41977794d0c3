package ram_test

import (
	"bytes"
	"errors"
	"fmt"
	stdlog "log"
	"os"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// keeper keeps the memory in a stream, as records. The Walker in it is told what the stream says
// of that memory (vmstate.Learner).
type keeper struct{ ram.Walker }

// section is the memory in one section.
type section struct {
	records []ram.Record
	format  ram.Format
}

// DecodeLive implements vmstate.LiveDecoder.
func (k *keeper) DecodeLive(h vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	if h.Name != ram.SectionName {
		return nil, vmstate.ErrUnknownSection
	}
	s := &section{format: k.Format}
	err := k.Walk(r, func(rec *ram.Record) error {
		kept := *rec // what it points to is valid until this returns
		kept.Data, kept.Blocks = slices.Clone(rec.Data), slices.Clone(rec.Blocks)
		s.records = append(s.records, kept)
		return nil
	})
	return s, err
}

// Put implements vmstate.LiveBody.
func (s *section) Put(w *qemufile.Writer) {
	for i := range s.records {
		s.records[i].Put(w, s.format)
	}
}

// A stream with a guest's memory is read as a vmstate.Document, and written again. A host
// with little memory keeps a summary in the place of the pages, and cannot write them.
func ExampleWalker() {
	memory := make([]byte, 4*ram.PageSize)
	memory[0x1010] = 1
	blocks := []ram.Block{{Name: "pc.ram", Host: memory}}
	saver := ram.NewSaver(blocks, log{ram.NewBitmap(4)}, ram.SaverConfig{})
	var reg vmstate.Registry
	var stream, again bytes.Buffer
	w := qemufile.NewWriter(&stream)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
	if err := errors.Join(saver.Register(&reg), reg.SaveSetup(w), reg.SaveComplete(w)); err != nil {
		stdlog.Fatal(err)
	}
	reg.SaveCleanup()
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		stdlog.Fatal(err)
	}

	doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream.Bytes())), new(keeper))
	if err != nil {
		stdlog.Fatal(err)
	}
	for _, rec := range doc.Records {
		if s, ok := rec.Live.(*section); ok {
			for _, r := range s.records {
				fmt.Println(rec.Type, r.Kind, r.Block, r.Offset)
			}
		}
	}
	w.Reset(&again)
	if err := errors.Join(doc.Put(w), w.Flush()); err != nil {
		stdlog.Fatal(err)
	}
	fmt.Println("the same bytes:", bytes.Equal(stream.Bytes(), again.Bytes()))
	// Output:
	// start block-list  0
	// start eos  0
	// end zero pc.ram 0
	// end page pc.ram 4096
	// end zero pc.ram 8192
	// end zero pc.ram 12288
	// end eos  0
	// the same bytes: true
}

// The devices in a stream of a stock QEMU, of whatever machine and with whatever capabilities. Its
// memory passes by, and so do sections of which nothing here knows what they are.
func ExampleWalker_Learn() {
	f, err := os.Open("testdata/qemu-7.2/precopy_none_1M_x-ignore-shared.bin")
	if err != nil {
		stdlog.Fatal(err)
	}
	defer f.Close()

	memory := ram.Walker{Detect: true}
	pages := 0
	var s vmstate.Scanner
	s.Record = func(rec *vmstate.Record) error {
		memory.Learn(rec)
		if rec.Type != vmstate.SectionFull {
			return nil
		}
		fields, err := rec.Decode()
		if err != nil { // it cannot be told from its description, or has none; the others can
			fmt.Println(rec.Header.Name, "not decoded:", err)
			return nil
		}
		for _, f := range fields.Fields {
			fmt.Println(rec.Header.Name, f.Name, f.Type)
		}
		return nil
	}
	s.Live = func(h vmstate.Header, r *qemufile.Reader) error {
		if h.Name != ram.SectionName {
			return s.SkipLive(h, r, nil)
		}
		return memory.Walk(r, func(rec *ram.Record) error {
			if rec.Kind == ram.KindPage || rec.Kind == ram.KindZero {
				pages++
			}
			return nil
		})
	}
	if err := s.Stream(qemufile.NewReader(f)); err != nil {
		stdlog.Fatal(err)
	}
	fmt.Println(pages, "pages")
	// Output:
	// timer cpu_ticks_offset int64
	// timer unused unused_buffer
	// timer cpu_clock_offset int64
	// globalstate size uint32
	// globalstate runstate buffer
	// 256 pages
}
