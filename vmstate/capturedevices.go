package vmstate

import (
	"errors"

	"github.com/gocolo/lockstep/qemufile"
)

// A Snapshotter is a PreSaver whose PreSave takes a copy of all that its VMState saves.
// If Snapshots returns true, [Registry.CaptureDevices] does not call the device's VMState:
// [Registry.SaveCaptured] does, when the guest runs on already. The copy must stay as it is
// until the next PreSave or load of the device, whatever the guest does and however often it
// is paused.
type Snapshotter interface {
	PreSaver
	Snapshots() bool
}

// capturedDevices holds what CaptureDevices has taken: sections in memory, and between them
// devices whose sections are written from their own copies.
type capturedDevices struct {
	there bool // CaptureDevices has succeeded, and SaveCaptured was not called since
	b     sectionBytes
	w     *qemufile.Writer // to b
	later []laterSection
}

// laterSection is a device whose section comes after the first at bytes of
// capturedDevices.b.
type laterSection struct {
	entry *entry
	at    int64
}

// sectionBytes is an io.Writer that collects sections in memory, which later
// captures use again.
type sectionBytes []byte

func (b *sectionBytes) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// CaptureDevices takes out of the paused guest what SaveDevices would write, and keeps it
// for SaveCaptured, before which the guest may run on: the sections of all devices but
// those that have a copy of their own ([Snapshotter]), whose PreSave it calls. What an
// earlier call has taken is forgotten. After an error nothing is there to be written.
func (reg *Registry) CaptureDevices() error {
	c := &reg.capturedDevices
	c.there, c.b, c.later = false, c.b[:0], c.later[:0]
	if c.w == nil {
		c.w = qemufile.NewWriter(nil)
	}
	c.w.Reset(&c.b)
	err := reg.eachDevice(func(e *entry) error {
		s, ok := e.device.(Snapshotter)
		if !ok || !s.Snapshots() {
			return reg.saveDevice(c.w, e)
		}
		e.saved = false
		if !needed(e.device) {
			return nil
		}
		if err := s.PreSave(); err != nil {
			return sectionError(e.header(SectionFull), c.w.Transferred(), err)
		}
		c.later = append(c.later, laterSection{e, c.w.Transferred()})
		return nil
	})
	if err == nil {
		err = c.w.Flush()
	}
	c.there = err == nil
	return err
}

// SaveCaptured writes what CaptureDevices has taken, in the order and with the bytes of
// SaveDevices. No EOF follows. It is called once for each CaptureDevices, before the next
// load, and fails where there was none.
func (reg *Registry) SaveCaptured(w *qemufile.Writer) error {
	c := &reg.capturedDevices
	if !c.there {
		return errors.New("vmstate: no devices have been captured")
	}
	c.there = false
	at := int64(0)
	for _, l := range c.later {
		if l.at > at {
			_, _ = w.Write(c.b[at:l.at]) // the Writer keeps its error
			at = l.at
		}
		if err := reg.encodeDevice(w, l.entry); err != nil {
			return err
		}
	}
	_, _ = w.Write(c.b[at:])
	return w.Err()
}
