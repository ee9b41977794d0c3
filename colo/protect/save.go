package protect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A saving is a request to write the guest.
type saving struct {
	ctx   context.Context // of whoever waits for it
	w     any             // what it is written to
	write func(until ending) error
	done  chan error // capacity one
}

var errSaving = errors.New("protect: the guest is being saved")

// Save ends the guest here with its state written to w, for Restore: it stands still, what
// it has said leaves, its disks are made stable, memory and devices are written, and Run
// returns nil as after Complete. From the beginning the copy of the secondary, if there is
// one, does not count any more. What a Network has registered is not saved, nor are the
// disks, which stay as they are for the guest to go on over. Until w has everything nothing
// is given up: with an error the guest runs on here, and is protected again if it was
// before. (Run ends, with an error, if the guest cannot be resumed.) A w that has a method
// Sync() error, as a file does, is synchronised last, unless it says that it cannot be, as a
// pipe does. The caller sees to it that its name is stable.
//
// Save returns when the guest has ended, or runs on. When ctx ends, or the job, it
// gives up between two calls of w.Write, and before Sync. Run waits for these.
func (j *Job) Save(ctx context.Context, w io.Writer) error {
	return j.save(ctx, w, func(until ending) error {
		return save(endingWriter{until, w}, j.cfg.Guest, j.cfg.Machine, j.keeper.Generation())
	})
}

// SaveMapped does what Save does, to an empty file that can be written at any place. The
// memory is at fixed places of it (mapped-ram of QEMU 9.0 and later): OpenSaved lets a
// guest run before that has been read, and zeros take no room. Restore reads it as well.
func (j *Job) SaveMapped(ctx context.Context, f ram.MappedFile) error {
	return j.save(ctx, f, func(until ending) error {
		return saveMapped(endingFile{until, f}, j.cfg.Guest, j.cfg.Machine, j.keeper.Generation())
	})
}

// save does what Save does; write writes the guest to w.
func (j *Job) save(ctx context.Context, w any, write func(until ending) error) error {
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := j.allowed(doSave); err != nil {
		return err
	}
	j.setSaving(true)
	defer j.setSaving(false)
	was := j.State()
	if was != Paused && was != Cancelled {
		// Whoever ends the session waits for its end, to take it up again.
		if err := j.leave(ctx, context.WithoutCancel(ctx), doPause, toPause, Paused, "to be saved"); err != nil {
			return err
		}
	}
	act, end := j.while(ctx, Paused, Cancelled)
	defer end()
	s := &saving{ctx: ctx, w: w, write: write, done: make(chan error, 1)}
	select {
	case j.saves <- s:
		err = <-s.done
	case <-act.Done():
		err = context.Cause(act)
	}
	if err == nil {
		return nil
	}
	if was != Paused && was != Cancelled {
		j.do(doResume, "") // or the guest is another host's by now
	}
	return fmt.Errorf("protect: save: %w", err)
}

func (j *Job) setSaving(on bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.saving = on
}

// store writes the guest, which is nobody's secondary, and ends it. It runs on the
// goroutine of Run. act ends when the guest is not this host's any more, or the job ends.
// stands is why the guest, which is not saved, stands still all the same; nil: it does not.
func (j *Job) store(act context.Context, s *saving) (err, stands error) {
	ctx, cancel := context.WithCancelCause(act)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	if err := j.memoryIsThere(ctx); err != nil {
		return err, nil
	}
	if err := j.vm.Pause(ctx); err != nil {
		return err, nil
	}
	err = j.writeAll(ctx, act, s)
	// When act has ended the guest is about to be paused for good. The state may
	// say so only later.
	if err != nil && act.Err() == nil {
		if stands = j.vm.Resume(context.WithoutCancel(act)); stands != nil {
			stands = fmt.Errorf("protect: resume the guest, which could not be saved: %w", stands)
		}
	}
	return errors.Join(err, stands), stands
}

// writeAll does the work of store while the guest stands still.
func (j *Job) writeAll(ctx, act context.Context, s *saving) error {
	if err := nets(j.cfg.Network).Drain(ctx); err != nil {
		return err
	}
	if err := j.syncDisks(ctx, act); err != nil {
		return err
	}
	if err := s.write(ending{s.ctx, act}); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if err := syncWriter(s.w); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if !j.keeper.Gate().Open() {
		return errors.New("the guest may be another host's by now")
	}
	return j.do(doComplete, "saved")
}

// syncWriter makes what was written stable, where that is possible at all.
func syncWriter(w any) error {
	f, ok := w.(interface{ Sync() error })
	if !ok {
		return nil
	}
	err := f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) { // a pipe, a socket, a terminal
		return nil
	}
	return err
}

// syncDisks makes what the guest has written stable. A disk whose gate is shut answers
// when it opens, or not at all: the guest is then another host's, or the job ends, and
// so does act. Where only ctx has ended the guest runs on, and Run waits for the answer.
func (j *Job) syncDisks(ctx, act context.Context) error {
	if len(j.cfg.Disks) == 0 {
		return nil
	}
	synced := make(chan error, 1)
	j.inBackground(func() {
		var errs []error
		for _, d := range j.cfg.Disks {
			errs = append(errs, d.Sync())
		}
		synced <- errors.Join(errs...)
	})
	select {
	case err := <-synced:
		return err
	case <-ctx.Done():
	}
	if act.Err() != nil {
		j.fenceDisks()
		<-synced
	}
	return context.Cause(ctx)
}

// An ending is several contexts. It comes when the first of them ends.
type ending []context.Context

func (e ending) err() error {
	for _, ctx := range e {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// An endingWriter passes writes on until its ending, and refuses those that come later.
type endingWriter struct {
	until ending
	w     io.Writer
}

func (w endingWriter) Write(p []byte) (int, error) {
	if err := w.until.err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// An endingFile passes writes on until its ending, and refuses those that come later.
type endingFile struct {
	until ending
	ram.MappedFile
}

func (f endingFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.until.err(); err != nil {
		return 0, err
	}
	return f.MappedFile.WriteAt(p, at)
}

// A provenance says of which generation a saved guest is. It is a vmstate.Device.
type provenance struct{ generation uint64 }

func (p *provenance) VMState(f *vmstate.Fields) { f.Uint64("generation", &p.generation) }

func (p *provenance) register(reg *vmstate.Registry) error {
	return reg.Register(vmstate.Entry{Name: "lockstep/protect", Version: 1, MinVersion: 1}, p)
}

// save writes a migration stream of a guest that stands still.
func save(to io.Writer, g Guest, machine string, generation uint64) error {
	return writeStream(to, ram.NewSaver(g.Blocks(), g, ram.SaverConfig{}), nil, g, machine, generation)
}

// saveMapped writes a migration stream with the memory at fixed places of a
// file.
func saveMapped(f ram.MappedFile, g Guest, machine string, generation uint64) error {
	saver := ram.NewMappedSaver(f, g.Blocks())
	return writeStream(saver, saver, []string{mappedRAM}, g, machine, generation)
}

// mappedRAM is QEMU's name for the capability that such a file announces.
const mappedRAM = "mapped-ram"

func writeStream(to io.Writer, memory vmstate.LiveSaver, capabilities []string, g Guest, machine string, generation uint64) error {
	reg := new(vmstate.Registry)
	if err := errors.Join(reg.RegisterLive(ramEntry(), memory, nil), g.Register(reg), (&provenance{generation}).register(reg)); err != nil {
		return err
	}
	if err := reg.Blocked(); err != nil {
		return err
	}
	defer reg.SaveCleanup()
	w := qemufile.NewWriter(to)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: machine, Capabilities: capabilities})
	if err := reg.SaveSetup(w); err != nil {
		return err
	}
	if err := reg.SaveComplete(w); err != nil {
		return err
	}
	if err := reg.SaveDevices(w); err != nil {
		return err
	}
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	return w.Flush()
}

// Restore makes g, which stands still and has not run, the guest that Save or SaveMapped
// has written, and returns of which generation it is, for Config.Held: where there is an
// arbiter, a saved guest goes on once, and any other attempt follows it. Its disks must be
// those of the host that saved it, as they were then. machine is Config.Machine. The state
// of no Network is in the file: connections that a Proxy was translating end. r begins with
// the file's first byte.
//
// What is read is checked first: with an error g is as it was, unless the error
// matches failover.ErrTorn; then it must never run.
func Restore(r io.Reader, g Guest, machine string) (held uint64, err error) {
	in := qemufile.NewReader(r)
	var from provenance
	c, err := readHead(in, machine)
	if err == nil {
		err = restore(in, g, slices.Contains(c.Capabilities, mappedRAM), &from)
	}
	if err != nil {
		return 0, fmt.Errorf("protect: restore: %w", err)
	}
	return from.generation, nil
}

// readHead reads what is in front of the sections.
func readHead(r *qemufile.Reader, machine string) (c vmstate.Configuration, err error) {
	if err := vmstate.ReadFileHeader(r); err != nil {
		return c, err
	}
	if c, err = vmstate.ReadConfiguration(r); err != nil {
		return c, err
	}
	if c.Machine != machine {
		return c, fmt.Errorf("the machine here is %q, that of the file %q", machine, c.Machine)
	}
	return c, nil
}

// restore reads sections, and puts what is in them into the guest.
func restore(r *qemufile.Reader, g Guest, mapped bool, from *provenance) (err error) {
	reg := new(vmstate.Registry)
	cache, err := ram.NewCache(g.Blocks(), nil, ram.CacheConfig{Format: ram.Format{MappedRAM: mapped}})
	if err != nil {
		return err
	}
	defer cache.Close()
	if err := errors.Join(reg.RegisterLive(ramEntry(), nil, cache), g.Register(reg), from.register(reg)); err != nil {
		return err
	}
	if err := readSections(r, reg); err != nil {
		reg.Rollback()
		return err
	}
	if err := cache.Flush(); err != nil {
		reg.Rollback()
		return fmt.Errorf("%w: %w", failover.ErrTorn, err)
	}
	return commit(reg)
}

// commit makes the devices what was read.
func commit(reg *vmstate.Registry) error {
	if err := reg.Commit(); err != nil {
		reg.Rollback()
		return fmt.Errorf("%w: %w", failover.ErrTorn, err)
	}
	return nil
}

// readSections reads all sections into reg, which must have them all.
func readSections(r *qemufile.Reader, reg *vmstate.Registry) error {
	if err := reg.Blocked(); err != nil {
		return err
	}
	unexpected := func(c vmstate.Command) error {
		return fmt.Errorf("%w %v is not expected in a file", vmstate.ErrCommand, c)
	}
	if err := reg.Load(r, unexpected); err != nil {
		return err
	}
	if _, err := vmstate.ReadVMDesc(r, 0); err != nil {
		return qemufile.NoEOF(err)
	}
	for _, e := range reg.Entries() {
		if !came(reg, e) {
			return fmt.Errorf("the device %q is not in the file", device{Name: e.Name, Instance: e.Instance})
		}
	}
	return nil
}

// came reports whether a device was in the stream that reg has loaded, under any of its
// names.
func came(reg *vmstate.Registry, e vmstate.Entry) bool {
	if _, ok := reg.PeerID(e.Name, e.Instance); ok {
		return true
	}
	for _, a := range e.Aliases {
		if _, ok := reg.PeerID(a.Name, a.Instance); ok {
			return true
		}
	}
	return false
}
