package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// mapped writes a stream as a mapped-ram file, as QEMU 9 would have written it.
func mapped(t *testing.T, in, out string) {
	t.Helper()
	src, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := qemufile.NewWriter(f)
	var m *ram.MappedWriter
	k := ram.Walker{}
	s := vmstate.Scanner{
		Record: func(rec *vmstate.Record) error {
			if rec.Type == vmstate.Configured {
				rec.Configuration.Capabilities = []string{"mapped-ram"}
			}
			rec.Put(w)
			return w.Err()
		},
		Live: func(h vmstate.Header, r *qemufile.Reader) error {
			return k.Walk(r, func(rec *ram.Record) (err error) {
				switch rec.Kind {
				case ram.KindBlockList:
					if err := w.Flush(); err != nil {
						return err
					}
					m, err = ram.CreateMapped(f, w.Transferred(), rec.Blocks)
					if err == nil {
						_, err = f.Seek(m.End()-8, io.SeekStart)
					}
				case ram.KindEOS:
					rec.Put(w, ram.Format{})
				default:
					p := make([]byte, ram.PageSize)
					err = errors.Join(rec.Apply(p), m.WritePage(rec.Block, rec.Offset, p))
				}
				return err
			})
		},
	}
	if err := errors.Join(s.Stream(qemufile.NewReader(src)), w.Flush(), m.Commit()); err != nil {
		t.Fatal(err)
	}
}

func TestAStreamBecomesAMappedFile(t *testing.T) {
	out := filepath.Join(t.TempDir(), "mapped.mig")
	mapped(t, file(t, "pc.mig"), out)
	dir := t.TempDir()
	a := dumpFile(t, "-json", "-fields", "-verify", "-extract-ram", dir, out)
	if a.status != 0 || a.sum.Devices != 30 || len(a.undecoded()) > 0 || sum(t, dir) != pcRAM {
		t.Errorf("status %d, %s, %+v", a.status, a.stderr, a.sum)
	}
	if a := dumpFile(t, "-diff", file(t, "pc.mig"), out); a.status != 0 {
		t.Errorf("it is another guest: %s", a.stdout)
	}
	// One that another program has composed is laid out alike.
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(file(t, "mapped-ram.mig"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%d bytes and %d, the first difference at %#x", len(got), len(want), i)
	}
}
