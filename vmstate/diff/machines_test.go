package diff_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/diff"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// memoryAsItCame keeps the records of memory as bytes. A section may go on in the block of the one
// before.
type memoryAsItCame struct{ walk ram.Walker }

func (m *memoryAsItCame) DecodeLive(h vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	if h.Name != ram.SectionName {
		return nil, vmstate.ErrUnknownSection
	}
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	err := m.walk.Walk(r, func(rec *ram.Record) error { rec.Put(w, ram.Format{}); return nil })
	w.Flush()
	return vmstate.Opaque(b.Bytes()), err
}

func names(s *diff.State) (names []string) {
	for i := range s.Blocks {
		names = append(names, s.Blocks[i].Name)
	}
	return names
}

// Whatever a machine is made of, its stream is taken apart to the last field, and what is written
// of the parts is the same stream, which a QEMU loads.
func TestQEMULoadsWhatIsWrittenOfItsParts(t *testing.T) {
	path := require.Program(t, require.QEMU, qemutest.Binary)
	dir := t.TempDir()
	shared := filepath.Join(dir, "shared")
	flash := filepath.Join(dir, "flash")
	for name, size := range map[string]int{shared: 2 << 20, flash: 256 << 10} {
		if err := os.WriteFile(name, make([]byte, size), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	machine := func(name string, args ...string) []string {
		return append([]string{"-S", "-display", "none", "-nodefaults", "-M", name}, args...)
	}
	for i, x := range []struct {
		name   string
		args   []string
		blocks []string
	}{
		{"an odd size", machine("pc", "-m", "129"), []string{"pc.ram", "pc.bios"}},
		{"q35 with a display and a card", machine("q35", "-m", "33", "-vga", "std", "-device", "virtio-net-pci"), []string{"pc.ram", "0000:00:01.0/vga.vram"}},
		{"memory that was plugged", machine("pc", "-m", "33,slots=2,maxmem=512M", "-object", "memory-backend-ram,id=m1,size=128M", "-device", "pc-dimm,memdev=m1,id=d1"), []string{"pc.ram", "m1"}},
		{"a shared file", machine("pc", "-m", "9", "-object", "memory-backend-file,id=s,mem-path="+shared+",size=2M,share=on", "-device", "ivshmem-plain,memdev=s,master=on"), []string{"pc.ram", "0000:00:02.0/s"}},
		{"flash", machine("q35", "-m", "9", "-drive", "if=pflash,format=raw,unit=0,file="+flash), []string{"pc.ram", "system.flash0"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			require.Sample(t, i, 3)
			file := record(t, x.args)
			stream, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), new(memoryAsItCame))
			if err != nil {
				t.Fatal(err)
			}
			for i := range doc.Records {
				if rec := &doc.Records[i]; rec.Type == vmstate.SectionFull {
					if _, err := rec.Decode(); err != nil {
						t.Errorf("%s: %v", rec.Header, err)
					}
				}
			}
			var again bytes.Buffer
			w := qemufile.NewWriter(&again)
			doc.Put(w)
			if err := w.Flush(); err != nil || !bytes.Equal(again.Bytes(), stream) {
				t.Fatalf("written again, it differs, %v", err)
			}
			s := state(t, file)
			for _, name := range x.blocks {
				if s.Block(name) == nil {
					t.Errorf("no block %q: %+v", name, names(s))
				}
			}
			if missing, all := s.Missing(); missing != 0 || all == 0 {
				t.Errorf("%d of %d pages did not come", missing, all)
			}
			if found := diff.Load(s, s); len(found) != 0 {
				t.Errorf("it would not load itself: %v", found)
			}
			copied := filepath.Join(filepath.Dir(file), "again.mig")
			if err := os.WriteFile(copied, again.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
			if loaded, said := load(t, path, copied, x.args); !loaded {
				t.Errorf("QEMU does not load it: %s", said)
			}
		})
	}
}
