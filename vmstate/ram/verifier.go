package ram

import (
	"errors"
	"fmt"
	"hash/maphash"
)

// VerifierConfig configures a [Verifier]. All of its fields are required.
type VerifierConfig struct {
	// Log is the dirty log that is checked.
	Log DirtyLog

	// Paused reports whether the guest and its devices stand still. It is called in
	// ReadDirty. Only then is Log judged: of a guest that runs, a write may be in the memory
	// already and not yet in Log.
	Paused func() bool

	// Missed is told each page that has changed and that Log has not reported by a pause, in
	// ReadDirty. offset is in the block, in bytes, of the page's first.
	Missed func(block string, offset uint64)
}

// A Verifier is a DirtyLog that proves another one: a [Tracker] watches the same memory,
// and what was written and not reported is named. So a host finds the device that writes
// guest memory and does not say so, which otherwise shows as a guest that breaks after a
// failover.
//
// It reports to the saver or cache the pages that either log has, so that a write that
// Log misses is not lost. Every page costs the guest one fault more than with Log alone.
//
// A page that Log reports is not missed, however often it is written before the next
// pause; a device that forgets one of two writes to it in between is found another time.
// Nor is a page whose contents are what they were: KVM makes a page writable before the
// vCPU has written it, and may stop in between. A Verifier keeps a checksum of eight bytes
// for each page, which StartDirtyLog computes of all memory.
//
// It belongs to one goroutine at a time, as its logs do.
type Verifier struct {
	cfg     VerifierConfig
	tracker *Tracker
	blocks  map[string]*verified
	missed  uint64
	seed    maphash.Seed
	on      bool
}

// verified keeps what a Verifier knows of one block.
type verified struct {
	mem         []byte
	sums        []uint64 // of each page, at the last pause
	seen, known Bitmap   // since then, of the tracker and of Log
	scratch     Bitmap   // what one call of the checked log has reported
}

// sum returns the checksum of page i.
func (v *Verifier) sum(b *verified, i int) uint64 {
	return maphash.Bytes(v.seed, b.mem[i*PageSize:(i+1)*PageSize])
}

// NewVerifier returns a Verifier of cfg.Log, whose blocks these are. Its errors are those
// of [NewTracker]. Close gives back what the Verifier takes; the caller keeps cfg.Log.
func NewVerifier(blocks []Block, cfg VerifierConfig) (*Verifier, error) {
	if cfg.Log == nil || cfg.Paused == nil || cfg.Missed == nil {
		return nil, errors.New("ram: verifier: no Log, Paused or Missed")
	}
	t, err := NewTracker(blocks)
	if err != nil {
		return nil, err
	}
	v := &Verifier{cfg: cfg, tracker: t, blocks: make(map[string]*verified, len(blocks)), seed: maphash.MakeSeed()}
	for _, b := range blocks {
		n := len(b.Host) / PageSize
		v.blocks[b.Name] = &verified{
			mem: b.Host, sums: make([]uint64, n),
			seen: NewBitmap(n), known: NewBitmap(n), scratch: NewBitmap(n),
		}
	}
	return v, nil
}

// StartDirtyLog starts both logs, and reads all memory.
func (v *Verifier) StartDirtyLog() error {
	if v.on {
		return nil
	}
	// The one that is checked first: a write in between is no fault of it.
	if sw, ok := v.cfg.Log.(LogSwitch); ok {
		if err := sw.StartDirtyLog(); err != nil {
			return err
		}
	}
	if err := v.tracker.StartDirtyLog(); err != nil {
		return err
	}
	v.on = true
	for _, b := range v.blocks {
		for i := range b.sums {
			b.sums[i] = v.sum(b, i) // what is written meanwhile is in a log
		}
	}
	return nil
}

// StopDirtyLog stops both logs; what was not judged is forgotten.
func (v *Verifier) StopDirtyLog() error {
	v.on = false
	err := v.tracker.StopDirtyLog()
	if sw, ok := v.cfg.Log.(LogSwitch); ok {
		err = errors.Join(err, sw.StopDirtyLog())
	}
	for _, b := range v.blocks {
		clear(b.seen)
		clear(b.known)
	}
	return err
}

// ReadDirty adds to bitmap what either log reports, and judges the checked one if the
// guest is paused. An error is that of a log, unchanged.
func (v *Verifier) ReadDirty(block string, bitmap []uint64) error {
	b := v.blocks[block]
	if b == nil || len(bitmap) < len(b.scratch) {
		return &Error{Op: "dirty log", Block: block, Stream: -1, Err: fmt.Errorf("%w, or a bitmap of %d words", ErrUnknownBlock, len(bitmap))}
	}
	if err := v.tracker.ReadDirty(block, b.seen); err != nil {
		return err
	}
	Bitmap(bitmap).Or(b.seen)
	clear(b.scratch)
	if err := v.cfg.Log.ReadDirty(block, b.scratch); err != nil {
		return err
	}
	b.known.Or(b.scratch)
	Bitmap(bitmap).Or(b.scratch)
	if !v.cfg.Paused() {
		return nil
	}
	for i := range b.known.All() {
		b.sums[i] = v.sum(b, i)
	}
	for i := range b.seen.All() {
		if b.known.Has(i) {
			continue
		}
		if sum := v.sum(b, i); sum != b.sums[i] {
			b.sums[i] = sum
			v.missed++
			v.cfg.Missed(block, uint64(i)*PageSize)
		}
	}
	clear(b.seen)
	clear(b.known)
	return nil
}

// ForgetDirty forgets what was written to a block until now; see [Forgetter].
func (v *Verifier) ForgetDirty(block string) {
	if f, ok := v.cfg.Log.(Forgetter); ok {
		f.ForgetDirty(block)
	}
	b := v.blocks[block]
	if b == nil {
		return
	}
	// If it fails the next ReadDirty does too.
	_ = v.tracker.ReadDirty(block, b.seen)
	for i := range b.seen.All() {
		b.sums[i] = v.sum(b, i)
	}
	clear(b.seen)
	clear(b.known)
}

// KeepDirty calls KeepDirty of the checked log, if that is a [DirtyKeeper]. The log
// reports a page that stays writable each time, so that no write to such a page can be
// missed.
func (v *Verifier) KeepDirty(block string, pages []uint64) bool {
	k, ok := v.cfg.Log.(DirtyKeeper)
	return ok && k.KeepDirty(block, pages)
}

// IdleCPUs returns what the checked log's IdleCPUs returns, if that log is an
// [Idler], or 0.
func (v *Verifier) IdleCPUs() int {
	if i, ok := v.cfg.Log.(Idler); ok {
		return i.IdleCPUs()
	}
	return 0
}

// Missed returns how many pages Log has missed so far.
func (v *Verifier) Missed() uint64 { return v.missed }

// Close stops the tracker.
func (v *Verifier) Close() error { return v.tracker.Close() }
