package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// What comes over a channel counts before or after what the main stream has, as
// SYNC packets say: one for each section (QEMU up to 8.0), or one for each
// MULTIFD_FLUSH, of which several may be in a section (8.1 and later).
func TestPagesOfChannelsAreOrderedWithTheMainStream(t *testing.T) {
	page := func(c byte) []byte { return bytes.Repeat([]byte{c}, ram.PageSize) }
	for _, flushes := range []bool{false, true} {
		main := written(t, func(w *qemufile.Writer) {
			begin(w)
			h := vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}
			flush := func() {
				if flushes {
					rec := ram.Record{Kind: ram.KindMultiFDFlush}
					rec.Put(w, ram.Format{})
				}
			}
			end := func() {
				rec := ram.Record{Kind: ram.KindEOS}
				rec.Put(w, ram.Format{})
				vmstate.PutFooter(w, 2)
			}
			h.Put(w)
			list := ram.Record{Kind: ram.KindBlockList, Total: 3 * ram.PageSize, Blocks: []ram.BlockInfo{{Name: "a", Length: 3 * ram.PageSize}}}
			list.Put(w, ram.Format{})
			flush()
			end()
			// The first round: page 0 and 2 in the channel, page 1 is zero.
			h.Type = vmstate.SectionPart
			h.Put(w)
			rec := ram.Record{Kind: ram.KindZero, Block: "a", Offset: ram.PageSize}
			rec.Put(w, ram.Format{})
			flush()
			if !flushes {
				end()
				h.Put(w)
			}
			// The second: page 0 has become zero, page 1 is in the channel.
			rec = ram.Record{Kind: ram.KindZero, Block: "a"}
			rec.Put(w, ram.Format{})
			flush()
			end()
			h.Type = vmstate.SectionEnd
			h.Put(w)
			flush()
			end()
			vmstate.PutEOF(w)
		})
		dir := t.TempDir()
		var args []string
		for i := range 2 {
			channel := written(t, func(w *qemufile.Writer) {
				multifd.Init{Channel: uint8(i)}.Put(w)
				packets := []multifd.Packet{{Sync: true}, {}, {Sync: true}, {}, {Sync: true}, {Sync: true}}
				if i == 0 {
					packets[1] = multifd.Packet{Block: "a", Normal: []uint64{0}, Zero: []uint64{2 * ram.PageSize}, Data: page(1)}
					packets[3] = multifd.Packet{Block: "a", Normal: []uint64{ram.PageSize}, Data: page(2)}
				}
				for _, p := range packets {
					p.Put(w)
				}
			})
			name := filepath.Join(dir, fmt.Sprint("ch", i))
			if err := os.WriteFile(name, channel, 0o666); err != nil {
				t.Fatal(err)
			}
			args = append(args, "-channel", name)
		}
		status, _, stderr := run(main, append(args, "-verify", "-extract-ram", dir)...)
		got, err := os.ReadFile(filepath.Join(dir, "a.bin"))
		if want := bytes.Join([][]byte{page(0), page(2), page(0)}, nil); status != 0 || err != nil || !bytes.Equal(got, want) {
			t.Errorf("flushes %t: status %d, %s, %v; pages begin with %d %d %d", flushes, status, stderr, err, got[0], got[ram.PageSize], got[2*ram.PageSize])
		}
		// A page that the main stream has no block for.
		bad := written(t, func(w *qemufile.Writer) {
			multifd.Init{Channel: 7}.Put(w)
			p := multifd.Packet{Block: "b", Zero: []uint64{0}}
			p.Put(w)
		})
		name := filepath.Join(dir, "bad")
		if err := os.WriteFile(name, bad, 0o666); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := run(main, "-channel", name); status != 1 || !bytes.Contains([]byte(stderr), []byte(`block "b", which the main stream does not have`)) {
			t.Errorf("another block: status %d, %s", status, stderr)
		}
	}
}

// A connection of postcopy-preempt has records of memory and nothing before them. Its pages come
// after those of the main stream, each once.
func TestPagesOfPostcopyPreemptAreTakenFromTheirConnection(t *testing.T) {
	page := func(c byte) []byte { return bytes.Repeat([]byte{c}, ram.PageSize) }
	put := func(w *qemufile.Writer, records ...ram.Record) {
		for _, rec := range records {
			rec.Put(w, ram.Format{})
		}
	}
	main := written(t, func(w *qemufile.Writer) {
		begin(w)
		h := vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}
		h.Put(w)
		put(w, ram.Record{Kind: ram.KindBlockList, Total: 4 * ram.PageSize, Blocks: []ram.BlockInfo{{Name: "a", Length: 4 * ram.PageSize}}}, ram.Record{Kind: ram.KindEOS})
		vmstate.PutFooter(w, 2)
		h.Type = vmstate.SectionEnd
		h.Put(w)
		put(w, ram.Record{Kind: ram.KindZero, Block: "a"}, ram.Record{Kind: ram.KindPage, Block: "a", Offset: ram.PageSize, Data: page(1)}, ram.Record{Kind: ram.KindEOS})
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	})
	pages := written(t, func(w *qemufile.Writer) {
		put(w, ram.Record{Kind: ram.KindPage, Block: "a", Offset: 3 * ram.PageSize, Data: page(3)},
			ram.Record{Kind: ram.KindPage, Block: "a", Continue: true, Offset: ram.PageSize, Data: page(4)},
			ram.Record{Kind: ram.KindZero, Block: "a", Continue: true, Offset: 2 * ram.PageSize}, ram.Record{Kind: ram.KindEOS})
	})
	none := pages[len(pages)-8:] // nothing was asked for
	dir := t.TempDir()
	for _, x := range []struct {
		name     string
		channels [][]byte
		err      string
	}{
		{"one connection", [][]byte{pages}, ""},
		{"another one after an interruption", [][]byte{pages, none}, ""},
		{"nothing but the end", [][]byte{none}, "2 of 4 pages did not come"},
		{"no end", [][]byte{pages[:len(pages)-8]}, "unexpected EOF"},
		{"bytes after the end", [][]byte{append(bytes.Clone(pages), 0)}, "trailing bytes"},
		{"a page beyond the block", [][]byte{written(t, func(w *qemufile.Writer) {
			put(w, ram.Record{Kind: ram.KindZero, Block: "a", Offset: 4 * ram.PageSize}, ram.Record{Kind: ram.KindEOS})
		})}, `a page at 0x4000 of block "a"`},
		{"no connection of a migration", [][]byte{bytes.Repeat([]byte("some text"), 8)}, "not a multifd channel"},
		{"an empty file", [][]byte{nil}, "channel0: the file is empty"},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := []string{"-verify", "-extract-ram", dir}
			for i, p := range x.channels {
				name := filepath.Join(dir, fmt.Sprint("channel", i))
				if err := os.WriteFile(name, p, 0o666); err != nil {
					t.Fatal(err)
				}
				args = append(args, "-channel", name)
			}
			status, _, stderr := run(main, args...)
			if x.err != "" {
				if status != 1 || !strings.Contains(stderr, x.err) {
					t.Errorf("status %d, %s", status, stderr)
				}
				return
			}
			got, err := os.ReadFile(filepath.Join(dir, "a.bin"))
			if want := bytes.Join([][]byte{page(0), page(4), page(0), page(3)}, nil); status != 0 || stderr != "" || err != nil || !bytes.Equal(got, want) {
				t.Errorf("status %d, %s, %v", status, stderr, err)
			}
		})
	}
}
