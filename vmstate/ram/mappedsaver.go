package ram

import (
	"errors"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// mappedPiece is the most memory that a MappedSaver reads between two writes, in bytes.
const mappedPiece = 4 << 20

// A MappedSaver saves a paused guest to a file, from the file's first byte on, with each page
// of memory at a fixed place ([MappedWriter]), for [Lazy.OpenMapped] or a QEMU with mapped-ram.
// It has two parts: the io.Writer to which the caller writes the stream, and the
// [vmstate.LiveSaver] that writes the memory into that stream:
//
//	saver := ram.NewMappedSaver(file, blocks)
//	saver.Register(reg)
//	w := qemufile.NewWriter(saver)
//	vmstate.PutFileHeader(w)
//	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: m, Capabilities: []string{"mapped-ram"}})
//	reg.SaveSetup(w)
//	… and so on
//
// SaveSetup writes all memory, behind what was put into w before. The file should be empty. A
// MappedSaver belongs to one goroutine, and is used once.
//
// [vmstate.LiveSaver]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveSaver
type MappedSaver struct {
	f      MappedFile
	blocks []Block
	at     int64 // offset in the file at which Write writes next
	done   bool
}

// NewMappedSaver returns a MappedSaver of blocks, which it reads when SaveSetup is called.
func NewMappedSaver(f MappedFile, blocks []Block) *MappedSaver {
	return &MappedSaver{f: f, blocks: blocks}
}

// Register registers the saver as the memory of a source's registry.
func (m *MappedSaver) Register(reg *vmstate.Registry) error {
	return reg.RegisterLive(Entry(), m, nil)
}

// Write appends p to the stream in the file. It implements io.Writer.
func (m *MappedSaver) Write(p []byte) (int, error) {
	n, err := m.f.WriteAt(p, m.at)
	m.at += int64(n)
	return n, err
}

// SaveSetup flushes w and writes the memory behind that; what is put into w afterwards goes
// behind the memory. Its errors are those of CreateMapped.
func (m *MappedSaver) SaveSetup(w *qemufile.Writer) error {
	if m.done {
		return &Error{Op: "save", Stream: -1, Err: errors.New("a MappedSaver is used once")}
	}
	m.done = true
	if err := w.Flush(); err != nil {
		return err
	}
	list := make([]BlockInfo, len(m.blocks))
	for i := range m.blocks {
		list[i] = BlockInfo{Name: m.blocks[i].Name, Length: m.blocks[i].used()}
	}
	to, err := CreateMapped(m.f, m.at, list)
	if err != nil {
		return err
	}
	for i := range m.blocks {
		b := &m.blocks[i]
		for at := uint64(0); at < b.used(); at += mappedPiece {
			if err := to.WritePages(b.Name, at, b.Host[at:min(at+mappedPiece, b.used())]); err != nil {
				return err
			}
		}
	}
	if err := to.Commit(); err != nil {
		return err
	}
	m.at = to.End()
	return nil
}

// SaveIterate has nothing to write.
func (m *MappedSaver) SaveIterate(w *qemufile.Writer) (done bool, err error) {
	w.PutBE64(flagEOS)
	return true, w.Err()
}

// SaveComplete has nothing to write.
func (m *MappedSaver) SaveComplete(w *qemufile.Writer) error {
	w.PutBE64(flagEOS)
	return w.Err()
}
