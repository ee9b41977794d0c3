package vmstate

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// A LiveLoader takes the sections of a live device: each START, PART and END brings one
// body. It reads exactly the body; an error that it returns ends the load.
// [Registry.Rollback] does not undo what a LiveLoader has taken: the host calls a method of
// the loader for that, such as Discard of a ram.Cache.
type LiveLoader interface {
	LoadState(r *qemufile.Reader, version uint32) error
}

// maxLoads is how often a device may come from one Commit to the next. Each time takes
// memory, for the undo log, and nothing else bounds how often a stream brings a device.
const maxLoads = 16

// maxPackaged is the default of Registry.MaxPackaged.
const maxPackaged = 256 << 20

// Load reads sections up to and including EOF. Live sections go to their
// loaders. Device sections are decoded, checked and staged: the fields have
// their new values, and wait for [Registry.Commit] or [Registry.Rollback];
// several loads may precede either, with up to 16 sections of one device.
//
// Commands go to onCommand, on this goroutine, in stream order; nil ignores
// them. onCommand may keep the payload, and its error ends the load. After
// PACKAGED, Load reads the nested stream itself (bounded by MaxPackaged).
//
// At POSTCOPY_RUN Load returns [ErrPostcopyRun]: everything is staged as at EOF,
// and the sections that still follow, up to EOF, are for a further Load.
//
// Any other error is a [*SectionError], and everything staged since the last
// Commit has been undone. A stream that ends between sections, but before EOF,
// is an io.ErrUnexpectedEOF like every other truncation.
func (reg *Registry) Load(r *qemufile.Reader, onCommand func(Command) error) error {
	err := reg.load(r, onCommand, false)
	if err != nil && !errors.Is(err, ErrPostcopyRun) {
		reg.Rollback()
	}
	return err
}

// LoadParts loads PART sections up to and including EOF, and refuses every other section
// before it reads it, with [ErrSectionType]. No field of a device changes, so the guest may
// run meanwhile.
func (reg *Registry) LoadParts(r *qemufile.Reader) error {
	err := reg.load(r, nil, true)
	if err != nil {
		reg.Rollback()
	}
	return err
}

// LoadDevices does what Load does, for a device state in memory, such as a COLO checkpoint
// has: the state must end with its EOF; bytes after that are [ErrTrailing]. LoadDevices
// does not keep the memory.
func (reg *Registry) LoadDevices(state []byte, onCommand func(Command) error) error {
	reg.memory.ResetBytes(state)
	defer reg.memory.ResetBytes(nil)
	err := reg.load(&reg.memory, onCommand, false)
	if n := reg.memory.Buffered(); err == nil && n > 0 {
		err = streamError(reg.memory.Offset(), fmt.Errorf("%d %w", n, ErrTrailing))
	}
	if err != nil && !errors.Is(err, ErrPostcopyRun) {
		reg.Rollback()
	}
	return err
}

func (reg *Registry) load(r *qemufile.Reader, onCommand func(Command) error, partsOnly bool) error {
	for {
		start := r.Offset()
		t := SectionType(r.Byte())
		if err := r.Err(); err != nil {
			return streamError(start, err)
		}
		var err error
		switch {
		case t == EOF:
			return nil
		case partsOnly && t != SectionPart:
			return streamError(start, fmt.Errorf("%w %d between checkpoints", ErrSectionType, byte(t)))
		}
		switch t {
		case SectionStart, SectionFull:
			err = reg.loadIntroduced(t, r, start)
		case SectionPart, SectionEnd:
			err = reg.loadContinued(t, r, start)
		case CommandRecord:
			err = reg.loadCommand(r, start, onCommand)
		default:
			err = streamError(start, fmt.Errorf("%w %d", ErrSectionType, byte(t)))
		}
		if err != nil {
			return err
		}
	}
}

// loadIntroduced loads a section that names its device.
func (reg *Registry) loadIntroduced(t SectionType, r *qemufile.Reader, start int64) error {
	h, e, err := reg.introduce(t, r)
	if err == nil {
		err = reg.loadBody(r, e, h, start)
	}
	return sectionError(h, start, err)
}

// introduce reads a header and finds its device. In the usual case of a device
// that is known, it allocates nothing.
func (reg *Registry) introduce(t SectionType, r *qemufile.Reader) (Header, *entry, error) {
	h := Header{Type: t, ID: r.BE32()}
	// The name stays a view until it has been used to find the device.
	n := int(r.Byte())
	if r.Err() == nil && n == 0 {
		return h, nil, fmt.Errorf("section %d without a name: %w", h.ID, ErrUnknownSection)
	}
	tail := r.Next(n + 8)
	if err := r.Err(); err != nil {
		return h, nil, err
	}
	h.Instance = binary.BigEndian.Uint32(tail[n:])
	h.Version = binary.BigEndian.Uint32(tail[n+4:])
	e := reg.names[Alias{string(tail[:n]), h.Instance}]
	if e == nil {
		h.Name = string(tail[:n])
		return h, nil, ErrUnknownSection
	}
	h.Name = e.Name
	switch owner := reg.peers[h.ID]; {
	case h.Version > e.Version:
		return h, nil, fmt.Errorf("%w: newer than %d", ErrVersion, e.Version)
	case h.Version < e.MinVersion:
		return h, nil, fmt.Errorf("%w: older than %d", ErrVersion, e.MinVersion)
	case owner != nil && owner != e:
		return h, nil, fmt.Errorf("%w: %d is %s/%d", ErrSectionID, h.ID, owner.Name, owner.Instance)
	}
	if e.known && e.peerID != h.ID {
		delete(reg.peers, e.peerID) // one id per device bounds the map
	}
	if !e.known || e.peerID != h.ID {
		reg.peers[h.ID] = e
	}
	e.known, e.peerID, e.peerVersion = true, h.ID, h.Version
	return h, e, nil
}

// loadContinued loads a section that refers to one before it.
func (reg *Registry) loadContinued(t SectionType, r *qemufile.Reader, start int64) error {
	h := Header{Type: t, ID: r.BE32()}
	err := r.Err()
	if err == nil {
		e := reg.peers[h.ID]
		if e == nil {
			err = fmt.Errorf("%w: no section %d", ErrUnknownSection, h.ID)
		} else {
			h.Name, h.Instance, h.Version = e.Name, e.Instance, e.peerVersion
			err = reg.loadBody(r, e, h, start)
		}
	}
	return sectionError(h, start, err)
}

// loadBody loads body and footer.
func (reg *Registry) loadBody(r *qemufile.Reader, e *entry, h Header, start int64) error {
	switch {
	case e.device != nil && h.Type.introduces() && e.loads == maxLoads:
		return fmt.Errorf("%w: it has come %d times", ErrBounds, maxLoads)
	case e.device != nil && h.Type.introduces():
		f := &reg.fields
		reg.after = nil
		*f = Fields{mode: loading, r: r, undo: &reg.undo, after: &reg.after, version: h.Version, device: h.Version, vmsd: e.VMSD}
		e.device.VMState(f)
		f.end()
		if err := f.Err(); err != nil {
			return err
		}
		reg.stage(staged{e, h, start, h.Version, reg.after})
	case e.device != nil:
		return fmt.Errorf("%w: device %s/%d is not live", ErrUnknownSection, e.Name, e.Instance)
	case e.loader == nil:
		return fmt.Errorf("%w: nothing here loads %s/%d", ErrUnknownSection, e.Name, e.Instance)
	default:
		if err := e.loader.LoadState(r, h.Version); err != nil {
			return err
		}
	}
	if reg.NoFooters {
		return r.Err()
	}
	return ReadFooter(r, h.ID)
}

// stage queues a device for Commit; a device that comes twice is committed once,
// as it came last.
func (reg *Registry) stage(s staged) {
	s.entry.loads++
	for i := range reg.staged {
		if reg.staged[i].entry == s.entry {
			reg.staged = append(reg.staged[:i], reg.staged[i+1:]...)
			break
		}
	}
	reg.staged = append(reg.staged, s)
}

func (reg *Registry) loadCommand(r *qemufile.Reader, start int64, onCommand func(Command) error) error {
	c, err := ReadCommand(r)
	if err == nil && onCommand != nil {
		err = onCommand(c)
	}
	if err == nil {
		switch c.Type {
		case CommandPackaged:
			return reg.loadPackaged(r, c, onCommand)
		case CommandPostcopyRun:
			return ErrPostcopyRun
		}
	}
	return sectionError(Header{Type: CommandRecord}, start, err)
}

// loadPackaged loads the stream inside a PACKAGED command, which ends with RUN
// or EOF.
func (reg *Registry) loadPackaged(r *qemufile.Reader, c Command, onCommand func(Command) error) error {
	start := r.Offset()
	h := Header{Type: CommandRecord}
	if reg.nested > 0 {
		return sectionError(h, start, fmt.Errorf("%w: %v inside %v", ErrCommand, c, c))
	}
	n, err := c.AsPackaged()
	if err != nil {
		return sectionError(h, start, err)
	}
	limit := reg.MaxPackaged
	if limit == 0 {
		limit = maxPackaged
	}
	body := r.Bytes(uint64(n), limit)
	if err := r.Err(); err != nil {
		return sectionError(h, start, err)
	}
	var inner qemufile.Reader
	inner.ResetBytes(body)
	reg.nested++
	err = reg.load(&inner, onCommand, false)
	reg.nested--
	var se *SectionError
	if errors.As(err, &se) {
		se.Offset += start
	}
	if left := inner.Buffered(); left > 0 && (err == nil || err == ErrPostcopyRun) {
		err = sectionError(h, start+inner.Offset(), fmt.Errorf("%d %w in %v", left, ErrTrailing, c))
	}
	return err
}

// Commit applies what is staged: it calls what OnCommit has registered and PostLoad
// of every staged device that has one, in stream order, and forgets how to undo. It stops at the first
// error, a [*SectionError]; the devices before it have then been applied and
// those after it have not, and Rollback still restores the fields.
func (reg *Registry) Commit() error {
	for _, s := range reg.staged {
		for _, fn := range s.after {
			if err := fn(); err != nil {
				return sectionError(s.header, s.offset, err)
			}
		}
		if p, ok := s.entry.device.(PostLoader); ok {
			if err := p.PostLoad(s.version); err != nil {
				return sectionError(s.header, s.offset, err)
			}
		}
	}
	reg.forget()
	return nil
}

// Rollback undoes everything staged: every field has exactly the value it had
// after the last Commit. Without anything staged it does nothing.
func (reg *Registry) Rollback() {
	reg.undo.rollback()
	reg.forget()
}

func (reg *Registry) forget() {
	reg.undo.forget()
	for _, s := range reg.staged {
		s.entry.loads = 0
	}
	clear(reg.staged)
	reg.staged = reg.staged[:0]
}
