package vmstate

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// A LiveSaver saves state that is too large to be saved while the guest is
// paused, such as its memory. Each call writes the body of one section.
type LiveSaver interface {
	// SaveSetup writes what the receiver must know first. The guest runs.
	SaveSetup(w *qemufile.Writer) error
	// SaveIterate writes a bounded amount; done says that little enough is left
	// to stop the guest. The guest runs. A saver with much to send asks
	// w.RateExceeded now and then.
	SaveIterate(w *qemufile.Writer) (done bool, err error)
	// SaveComplete writes the rest, or what Capture took if it was called. The
	// guest is paused unless Capture said that it need not be.
	SaveComplete(w *qemufile.Writer) error
}

// A Capturer is a LiveSaver that can copy what SaveComplete is going to send,
// so that the guest may go on while it is sent. Capture is called with the
// guest paused; whole=false says that SaveComplete still has to read something
// from the paused guest.
type Capturer interface {
	Capture() (whole bool, err error)
}

// A Pender is a LiveSaver that knows how many bytes it still has to send: those
// that must go before the guest can run on the other side, and those that can
// follow it. exact asks for a fresh look (reading the dirty log), which may be
// slow; otherwise an estimate will do.
type Pender interface {
	Pending(exact bool) (mustPrecopy, canPostcopy uint64)
}

// A Cleaner is a LiveSaver that frees something when saving is over, however it ended.
type Cleaner interface {
	SaveCleanup()
}

// A PostcopySaver is a LiveSaver that can go on after the guest runs on the
// other side. If HasPostcopy says so, [Registry.SaveComplete] leaves it out once
// postcopy has begun and [Registry.SaveCompletePostcopy] ends it.
type PostcopySaver interface {
	HasPostcopy() bool
	SaveCompletePostcopy(w *qemufile.Writer) error
}

// A ResumePreparer is a LiveSaver that can take up an interrupted postcopy: it
// learns what the destination has already (RAM asks for its bitmaps) before
// saving goes on.
type ResumePreparer interface {
	ResumePrepare() error
}

// An Unplugger is a Device or LiveSaver that the guest must give up before the
// migration may go on (a failover NIC).
type Unplugger interface {
	GuestUnplugPending() bool
}

// needed reports whether a device or saver has something to save.
func needed(v any) bool {
	n, ok := v.(Needer)
	return !ok || n.Needed()
}

// savers calls fn for each live saver that is needed.
func (reg *Registry) savers(fn func(*entry) error) error {
	for _, e := range reg.order {
		if e.saver != nil && needed(e.saver) {
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// section writes one section around body.
func (reg *Registry) section(w *qemufile.Writer, h Header, body func() error) error {
	start := w.Transferred()
	h.Put(w)
	err := body()
	if err == nil {
		if !reg.NoFooters {
			PutFooter(w, h.ID)
		}
		err = w.Err()
	}
	return sectionError(h, start, err)
}

// SaveSetup writes the START section of every live device and, among them by
// their priority, the FULL section of every [Entry].Early one. It stops at the
// first that fails.
func (reg *Registry) SaveSetup(w *qemufile.Writer) error {
	reg.setUp, reg.behind = true, false
	for _, e := range reg.order {
		var err error
		switch {
		case e.live():
			if e.saver != nil && needed(e.saver) {
				err = reg.section(w, e.header(SectionStart), func() error { return e.saver.SaveSetup(w) })
			}
		case e.Early:
			err = reg.saveDevice(w, e)
			e.early = e.saved
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SaveIterate writes a PART section for every live device and reports whether
// all of them are done. If the Writer's rate limit is exceeded it returns early,
// with done=false, and begins with the first device again next time. After
// SaveCompleteInPostcopy it leaves out the devices whose END section that wrote.
func (reg *Registry) SaveIterate(w *qemufile.Writer) (done bool, err error) {
	done = true
	err = reg.savers(func(e *entry) error {
		if reg.ended(e) {
			return nil
		}
		if w.RateExceeded() {
			done = false
			return nil
		}
		return reg.section(w, e.header(SectionPart), func() error {
			d, err := e.saver.SaveIterate(w)
			done = done && d
			return err
		})
	})
	return done && err == nil, err
}

// Pending adds up what the live devices still have to send, in bytes. Devices
// that are no [Pender] count nothing, nor do those that have nothing to send in postcopy
// once that has begun.
func (reg *Registry) Pending(exact bool) (mustPrecopy, canPostcopy uint64) {
	_ = reg.savers(func(e *entry) error {
		if p, ok := e.saver.(Pender); ok && !reg.ended(e) {
			must, can := p.Pending(exact)
			mustPrecopy += must
			canPostcopy += can
		}
		return nil
	})
	return mustPrecopy, canPostcopy
}

// Capture lets every live device copy what SaveComplete will send; the guest is
// paused. whole is true if the guest may run before SaveComplete; it is false if
// any device cannot capture.
func (reg *Registry) Capture() (whole bool, err error) {
	if err := reg.maySwitch(); err != nil {
		return false, err
	}
	whole = true
	err = reg.savers(func(e *entry) error {
		c, ok := e.saver.(Capturer)
		if !ok {
			whole = false
			return nil
		}
		all, err := c.Capture()
		whole = whole && all
		if err != nil {
			return fmt.Errorf("vmstate: capture %s/%d: %w", e.Name, e.Instance, err)
		}
		return nil
	})
	return whole && err == nil, err
}

// SaveComplete writes the END section of every live device. No EOF follows: the
// devices may.
func (reg *Registry) SaveComplete(w *qemufile.Writer) error { return reg.saveComplete(w, false) }

// SaveCompleteInPostcopy does what SaveComplete does, after the switch to postcopy: it
// leaves out devices that go on in postcopy.
func (reg *Registry) SaveCompleteInPostcopy(w *qemufile.Writer) error {
	err := reg.saveComplete(w, true)
	reg.behind = err == nil
	return err
}

// ended reports whether the END section of a live device is written already, since memory
// follows the guest and the device is not among those that do.
func (reg *Registry) ended(e *entry) bool {
	p, ok := e.saver.(PostcopySaver)
	return reg.behind && !(ok && p.HasPostcopy())
}

func (reg *Registry) saveComplete(w *qemufile.Writer, inPostcopy bool) error {
	if err := reg.maySwitch(); err != nil {
		return err
	}
	return reg.savers(func(e *entry) error {
		if p, ok := e.saver.(PostcopySaver); ok && inPostcopy && p.HasPostcopy() {
			return nil
		}
		return reg.section(w, e.header(SectionEnd), func() error { return e.saver.SaveComplete(w) })
	})
}

// SaveCompletePostcopy writes the END section of every device that went on in
// postcopy, and EOF, and flushes. No description follows.
func (reg *Registry) SaveCompletePostcopy(w *qemufile.Writer) error {
	err := reg.savers(func(e *entry) error {
		p, ok := e.saver.(PostcopySaver)
		if !ok || !p.HasPostcopy() {
			return nil
		}
		return reg.section(w, e.header(SectionEnd), func() error { return p.SaveCompletePostcopy(w) })
	})
	if err != nil {
		return err
	}
	reg.behind = false
	PutEOF(w)
	return w.Flush()
}

// SaveDevices writes a FULL section for every device that is not live, calling
// its PreSave. No EOF follows. The guest is paused.
//
// The first time after SaveSetup it leaves out the early devices, which that has
// saved; the device state of a checkpoint has them all.
func (reg *Registry) SaveDevices(w *qemufile.Writer) error {
	if err := reg.eachDevice(func(e *entry) error { return reg.saveDevice(w, e) }); err != nil {
		return err
	}
	return w.Err()
}

// eachDevice calls fn for each device that SaveDevices is to save, in order.
func (reg *Registry) eachDevice(fn func(*entry) error) error {
	first := reg.setUp
	reg.setUp = false
	for _, e := range reg.order {
		if e.live() || e.Early && first {
			continue
		}
		e.early = false
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// saveDevice writes a FULL section, if the device is needed.
func (reg *Registry) saveDevice(w *qemufile.Writer, e *entry) error {
	e.saved = false
	if !needed(e.device) {
		return nil
	}
	if p, ok := e.device.(PreSaver); ok {
		if err := p.PreSave(); err != nil {
			return sectionError(e.header(SectionFull), w.Transferred(), err)
		}
	}
	return reg.encodeDevice(w, e)
}

// encodeDevice writes the FULL section of a device that has gathered its state.
func (reg *Registry) encodeDevice(w *qemufile.Writer, e *entry) error {
	h, start := e.header(SectionFull), w.Transferred()
	h.Put(w)
	body := w.Transferred()
	f := &reg.fields
	*f = Fields{mode: saving, w: w, version: e.Version, device: e.Version, vmsd: e.VMSD}
	e.device.VMState(f)
	if err := f.Err(); err != nil {
		return sectionError(h, start, err)
	}
	e.savedLen = w.Transferred() - body
	if !reg.NoFooters {
		PutFooter(w, e.id)
	}
	e.saved = true
	return sectionError(h, start, w.Err())
}

// SaveCleanup tells every live device that saving is over. It may be called at
// any time, also after an error.
func (reg *Registry) SaveCleanup() {
	for _, e := range reg.order {
		if c, ok := e.saver.(Cleaner); ok {
			c.SaveCleanup()
		}
	}
}

// ResumePrepare asks every live device that is a [ResumePreparer] to get ready
// for going on after an interrupted postcopy, and stops at the first error.
func (reg *Registry) ResumePrepare() error {
	return reg.savers(func(e *entry) error {
		if p, ok := e.saver.(ResumePreparer); ok {
			if err := p.ResumePrepare(); err != nil {
				return fmt.Errorf("vmstate: resume %s/%d: %w", e.Name, e.Instance, err)
			}
		}
		return nil
	})
}

// GuestUnplugPending reports whether a device still waits for the guest to give
// it up.
func (reg *Registry) GuestUnplugPending() bool {
	for _, e := range reg.entries {
		for _, v := range [...]any{e.device, e.saver} {
			if u, ok := v.(Unplugger); ok && u.GuestUnplugPending() {
				return true
			}
		}
	}
	return false
}
