package diff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// stream returns a migration whose sections fn writes.
func stream(t *testing.T, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
	fn(w)
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(p []byte, cfg Config) (*State, error) {
	return Read(qemufile.NewReader(bytes.NewReader(p)), cfg)
}

// device writes a section of a device.
func device(w *qemufile.Writer, name string, body []byte) {
	vmstate.Header{Type: vmstate.SectionFull, ID: 3, Name: name, Version: 1}.Put(w)
	w.Write(body)
	vmstate.PutFooter(w, 3)
}

// pack writes a package with what fn writes.
func pack(w *qemufile.Writer, fn func(w *qemufile.Writer)) {
	var b bytes.Buffer
	nested := qemufile.NewWriter(&b)
	fn(nested)
	vmstate.PutEOF(nested)
	nested.Flush()
	vmstate.PutCommand(w, vmstate.Command{Type: vmstate.CommandPackaged, Payload: binary.BigEndian.AppendUint32(nil, uint32(b.Len()))})
	w.Write(b.Bytes())
}

// A stream may have several lists of blocks: what is kept of all of them is bounded.
func TestTheBlocksOfAllListsAreBounded(t *testing.T) {
	lists := func(blocks int) []byte {
		return stream(t, func(w *qemufile.Writer) {
			vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: ram.SectionName, Version: ram.Version}.Put(w)
			for i := 0; i < blocks; {
				list := ram.Record{Kind: ram.KindBlockList}
				for end := min(i+1000, blocks); i < end; i++ {
					list.Blocks = append(list.Blocks, ram.BlockInfo{Name: fmt.Sprint("b", i), Length: ram.PageSize})
					list.Total += ram.PageSize
				}
				list.Put(w, ram.Format{})
			}
			eos := ram.Record{Kind: ram.KindEOS}
			eos.Put(w, ram.Format{})
			vmstate.PutFooter(w, 2)
		})
	}
	if s, err := read(lists(ram.MaxBlocks), Config{}); err != nil || len(s.Blocks) != ram.MaxBlocks {
		t.Errorf("as many as may be: %d blocks, %v", len(s.Blocks), err)
	}
	s, err := read(lists(ram.MaxBlocks+1), Config{})
	if !errors.Is(err, ram.ErrBlockList) || len(s.Blocks) != ram.MaxBlocks {
		t.Errorf("one more: %d blocks, %v", len(s.Blocks), err)
	}
}

// Packages have devices too, and there may be any number of them.
func TestTheDevicesOfAllPackagesAreBounded(t *testing.T) {
	const each = maxDevices / 4
	packages := func(more int) []byte {
		return stream(t, func(w *qemufile.Writer) {
			for range 4 {
				pack(w, func(w *qemufile.Writer) {
					for range each {
						device(w, "d", nil)
					}
				})
			}
			for range more {
				device(w, "d", nil)
			}
		})
	}
	if s, err := read(packages(0), Config{}); err != nil || len(s.Devices) != 1 {
		t.Errorf("as many as may be: %d devices, %v", len(s.Devices), err)
	}
	s, err := read(packages(1), Config{})
	if !errors.Is(err, vmstate.ErrBounds) || len(s.Devices) != 1 {
		t.Errorf("one more: %d devices, %v", len(s.Devices), err)
	}
}

// What does not fit into MaxState is compared by its length, wherever it comes; what came before
// in the place of a device does not count.
func TestTheStateOfAllPackagesIsBounded(t *testing.T) {
	p := stream(t, func(w *qemufile.Writer) {
		for i := range 3 {
			pack(w, func(w *qemufile.Writer) {
				device(w, "again", bytes.Repeat([]byte{byte(i)}, 600))
				device(w, fmt.Sprint("d", i), bytes.Repeat([]byte{byte(i)}, 200))
			})
		}
	})
	s, err := read(p, Config{MaxState: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	kept := 0
	for i := range s.Devices {
		d := &s.Devices[i]
		names = append(names, fmt.Sprintf("%s %d %d", d.Name, d.Length, len(d.Body)))
		kept += len(d.Body)
	}
	if got, want := fmt.Sprint(names), "[d0 200 200 d1 200 200 again 600 600 d2 200 0]"; got != want || len(s.Partial) != 1 || kept > 1000 {
		t.Errorf("%s, want %s; %q", got, want, s.Partial)
	}
	if d := s.Find("again", 0); d == nil || d.Body[0] != 2 {
		t.Errorf("not the last counts: %v", d)
	}
}
