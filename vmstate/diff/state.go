package diff

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Config says how [Read] reads. The zero value is right for a stream of QEMU.
type Config struct {
	// PageSize is the size of the target's pages in bytes, where it is known
	// beforehand; 0: as the stream tells.
	PageSize int

	// Devices describes the devices of a stream that does not.
	Devices *vmstate.VMDesc

	// MaxState bounds the device state that is kept, in bytes; devices beyond
	// it are compared by their length. 0: 24 MiB.
	MaxState uint64

	// MaxPages bounds the pages that are told apart, 8 bytes for each. Beyond
	// it memory is not compared ([State].Partial). 0: 4 Mi pages, which are
	// 16 GiB of pages of 4096 bytes.
	MaxPages int

	// Scratch, if not nil, keeps the contents of pages, which a stream with
	// XBZRLE needs: a page's difference to what came before can only be
	// understood with that. Without it such a stream fails with [ErrDelta].
	Scratch Scratch

	// Shape leaves pages and their contents unread, where only the shape of the
	// devices counts.
	Shape bool
}

// Scratch is where the contents of pages are kept: a file, sparse at best. Holes
// read as zeros or as the end of the file.
type Scratch interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
}

// ErrDelta means that a stream has XBZRLE pages and Config no Scratch.
var ErrDelta = errors.New("diff: XBZRLE pages need a scratch file")

// A State is the state that a destination would have after loading a stream, with the
// facts that the stream tells about the machine that has written it.
type State struct {
	// Configuration is nil where the stream has none.
	Configuration *vmstate.Configuration
	// Footers says that sections have them.
	Footers bool
	// PageSize is the size of the target's pages, in bytes.
	PageSize int
	// Devices are the devices of the FULL sections, each once, in the order in which
	// they come (last) in the stream.
	Devices []Device
	// Live names the live devices, "ram" among them.
	Live []string
	// Blocks are the guest's RAM blocks as listed.
	Blocks []Block
	// Postcopy says that the stream prepares for postcopy.
	Postcopy bool
	// Partial says what was not kept and is not compared, and why; empty if nothing.
	Partial []string

	index map[string]*Block
}

// A Device is one FULL section.
type Device struct {
	vmstate.Header
	Body   []byte // nil if it was too long to be kept
	Length int64  // of the body, in bytes
	Desc   *vmstate.DeviceDesc
	// Misfit says why there is no Desc.
	Misfit  error
	Guessed bool // its name and length are
}

// key returns the name and instance by which a device is found.
func (d *Device) key() vmstate.Alias { return vmstate.Alias{Name: d.Name, Instance: d.Instance} }

// label returns a device's name for use in sentences.
func (d *Device) label() string {
	if d.Instance == 0 {
		return d.Name
	}
	return fmt.Sprintf("%s instance %d", d.Name, d.Instance)
}

// Find returns the device of that name and instance, or nil.
func (s *State) Find(name string, instance uint32) *Device {
	for i := range s.Devices {
		if s.Devices[i].Name == name && s.Devices[i].Instance == instance {
			return &s.Devices[i]
		}
	}
	return nil
}

// Block returns the RAM block of that name, or nil.
func (s *State) Block(name string) *Block { return s.index[name] }

// Missing returns how many pages never came, of how many. Multifd sends them
// elsewhere, and a balloon leaves some out.
func (s *State) Missing() (missing, all int64) {
	size := uint64(max(s.PageSize, 1))
	for i := range s.Blocks {
		b := &s.Blocks[i]
		n := int64((b.Length + size - 1) / size)
		all += n
		if !b.Mapped {
			missing += max(n-b.Came, 0)
		}
	}
	return missing, all
}

// Machine returns the machine type, or "" where the stream does not tell.
func (s *State) Machine() string {
	if s.Configuration == nil {
		return ""
	}
	return s.Configuration.Machine
}

// Read reads a stream from its file header to its description, or to EOF where it
// has none. Its errors are those of [vmstate.Scanner] and [ram.Walker], and
// [ErrDelta]; with one comes what was read before.
func Read(r *qemufile.Reader, cfg Config) (*State, error) {
	x := reading{cfg: cfg, s: &State{index: make(map[string]*Block)}, places: make(map[vmstate.Alias]int)}
	if x.cfg.MaxState == 0 {
		x.cfg.MaxState = 24 << 20
	}
	if x.left = cfg.MaxPages; x.left == 0 {
		x.left = 4 << 20
	}
	x.walk.Detect, x.walk.PageSize = true, cfg.PageSize
	x.scan = vmstate.Scanner{
		Record: x.record, Live: x.live, Described: x.described, Devices: cfg.Devices,
		MaxState: x.cfg.MaxState, MaxSkip: 1 << 62, Padding: true, Large: func([]byte) {},
	}
	err := x.scan.Stream(r)
	x.once()
	x.s.Footers = !x.scan.NoFooters
	x.s.PageSize = x.walk.Size()
	for i := range x.s.Blocks {
		x.s.index[x.s.Blocks[i].Name] = &x.s.Blocks[i]
	}
	return x.s, err
}

// reading is a Read in progress.
type reading struct {
	cfg    Config
	s      *State
	scan   vmstate.Scanner
	walk   ram.Walker
	places map[vmstate.Alias]int // index in Devices, of the last of that name
	state  uint64                // bytes of device state that are kept
	names  map[string]int        // index in Blocks
	left   int                   // pages that may still be told apart
	page   []byte
	last   *Block
}

func (x *reading) record(rec *vmstate.Record) error {
	x.walk.Learn(rec)
	switch rec.Type {
	case vmstate.Configured:
		c := rec.Configuration
		x.s.Configuration = &c
	case vmstate.SectionStart:
		if !slices.Contains(x.s.Live, rec.Header.Name) && len(x.s.Live) < 1<<10 {
			x.s.Live = append(x.s.Live, rec.Header.Name)
		}
	case vmstate.SectionFull:
		return x.device(rec)
	case vmstate.CommandRecord:
		if rec.Command.Type == vmstate.CommandPostcopyAdvise {
			x.s.Postcopy = true
		}
		for i := range rec.Package {
			if rec.Package[i].Type == vmstate.SectionFull {
				nested := rec.Package[i]
				nested.Body = bytes.Clone(nested.Body) // as it is it would keep all of the package
				if err := x.device(&nested); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// maxDevices bounds the devices of a stream, those among them that come again.
const maxDevices = 1 << 15

func (x *reading) device(rec *vmstate.Record) error {
	d := Device{Header: rec.Header, Body: rec.Body, Length: rec.BodyLength, Desc: rec.Desc, Misfit: rec.Misfit, Guessed: rec.Guessed}
	if len(x.s.Devices) == maxDevices {
		return fmt.Errorf("offset %d: more than %d devices: %w", rec.Offset, maxDevices, vmstate.ErrBounds)
	}
	if i, ok := x.places[d.key()]; ok {
		x.state -= uint64(len(x.s.Devices[i].Body))
		x.s.Devices[i] = Device{Header: d.Header} // the last counts
	}
	elided := rec.Elided || x.state+uint64(len(d.Body)) > x.cfg.MaxState
	if elided {
		d.Body = nil
		x.s.Partial = append(x.s.Partial, fmt.Sprintf("device %s has %d bytes, of which only that is compared", d.label(), d.Length))
	}
	x.state += uint64(len(d.Body))
	x.places[d.key()] = len(x.s.Devices)
	x.s.Devices = append(x.s.Devices, d)
	return nil
}

// once leaves of each device the last.
func (x *reading) once() {
	n := 0
	for i := range x.s.Devices {
		if d := &x.s.Devices[i]; x.places[d.key()] == i {
			x.s.Devices[n] = *d
			n++
		}
	}
	clear(x.s.Devices[n:])
	x.s.Devices = x.s.Devices[:n]
}

// described completes an early device, now that its description has come.
func (x *reading) described(rec *vmstate.Record) {
	if i, ok := x.places[vmstate.Alias{Name: rec.Header.Name, Instance: rec.Header.Instance}]; ok {
		x.s.Devices[i].Desc, x.s.Devices[i].Misfit = rec.Desc, rec.Misfit
	}
}

func (x *reading) live(h vmstate.Header, r *qemufile.Reader) error {
	if h.Name != ram.SectionName {
		if len(x.s.Partial) < 100 && h.Type == vmstate.SectionStart {
			x.s.Partial = append(x.s.Partial, fmt.Sprintf("live device %s is not compared: nothing here reads it", h.Name))
		}
		return x.scan.SkipLive(h, r, nil)
	}
	return x.walk.Walk(r, x.records)
}
