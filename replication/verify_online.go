package replication

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
)

// Repair says which copy is overwritten with the other where they differ.
type Repair uint8

// The directions of a repair.
const (
	RepairNone      Repair = iota
	RepairSecondary        // the secondary's copy is overwritten
	RepairPrimary          // the primary's copy is overwritten; the guest then finds other data than it had
)

// VerifyConfig says how VerifyOnline works.
type VerifyConfig struct {
	// Sums reads the checksums of the secondary disk, see [Sums]. Nil: Secondary
	// is compared byte by byte.
	Sums io.ReaderAt
	// Secondary reads the secondary disk, for instance over a connection of its
	// own to the Export. It is needed without Sums, and for RepairPrimary.
	Secondary io.ReaderAt
	Repair    Repair
	// BytesPerSecond bounds how many bytes are compared in a second; zero: as many as both
	// sides can.
	BytesPerSecond int64
	// MaxHold bounds for how long a write of the guest waits for the comparison of a chunk that is
	// written all the time. A chunk that cannot be compared within it is undecided. Zero: 2 s, which
	// the timeouts of guests' disks are far from; less than 0: writes never wait.
	MaxHold time.Duration
}

// UndecidedError is the error of a VerifyOnline that has compared all but some chunks. They
// differed each time that they were read, but the guest wrote them meanwhile, and the other side could not
// be read within VerifyConfig.MaxHold: whether they differ is not known. Verify again when the
// guest writes less or the other side is faster, or with a longer MaxHold.
type UndecidedError struct {
	Chunks *Bitmap
}

func (e *UndecidedError) Error() string {
	return fmt.Sprintf("replication: verify: %d bytes are undecided: the guest writes them, and the secondary was not read within the time for which its writes may wait", e.Chunks.Bytes())
}

// VerifyOnline compares the local disk with that of the attached secondary, while the
// guest runs and replication does: step by step, after what is on its way has arrived. It
// returns the chunks that differ, as they were found, and repairs them if VerifyConfig says so; a
// repair of the secondary is forwarded like a write, and waits like one where the secondary has no
// room for what it replaces. What Synchronise is still to copy is left out.
//
// The guest goes on while the other side is read, and a chunk that differs, and was written
// meanwhile, is compared again. If it is written each time, the guest's writes to that chunk wait
// at last while the other side is read: for 100 ms, or twice as long as that has taken before, at
// most for VerifyConfig.MaxHold, and no longer once Cut is called or ctx ends. A chunk that could not be
// compared even so is undecided, and not repaired; the error is an *UndecidedError once the rest
// has been compared. VerifyOnline itself returns only when what
// VerifyConfig reads with does, which should have a timeout, as an nbd.Client has.
//
// A difference that is not repaired is in what VerifyOnline returns, and nowhere else: not in the account of what
// the secondary lacks, since nobody has said which of the two copies is the right one. The next
// synchronisation, of what changed alone, leaves it, and a VerifyOnline with the direction of the repair
// removes it.
//
// At the end the bus is told, with an event.DiskVerified. Any other error is
// ErrNotRunning without a secondary, or if the disk grows or the Remote is replaced meanwhile, which the error says, ctx's, that of a side
// that could not be read or written, ErrFull if a repair has waited for ForwarderConfig.Timeout, or
// the *BrokenError; what was found until then is returned with it. A side whose disk could not be flushed (SyncError) may
// read as it was before, so that the other one is not repaired with it: that is an error too.
func (p *Primary) VerifyOnline(ctx context.Context, cfg VerifyConfig) (differ *Bitmap, err error) {
	var found *Bitmap
	err = p.dog.call(ctx, func() (err error) { found, err = p.verifyOnline(ctx, cfg); return err })
	if errors.Is(err, ErrHung) { // found may still be written
		return NewBitmap(p.size.Load()), err
	}
	return found, err
}

func (p *Primary) verifyOnline(ctx context.Context, cfg VerifyConfig) (differ *Bitmap, err error) {
	differ = NewBitmap(p.size.Load())
	f := p.link.Load()
	if f == nil {
		return differ, fmt.Errorf("%w: verify: no secondary is attached", ErrNotRunning)
	}
	if cfg.Secondary == nil && (cfg.Sums == nil || cfg.Repair == RepairPrimary) {
		return differ, fmt.Errorf("replication: verify: nothing to read the secondary with")
	}
	v := verifier{
		p: p, f: f, cfg: cfg, differ: differ, undecided: NewBitmap(p.size.Load()),
		ours: make([]byte, copyStep), theirs: make([]byte, copyStep),
	}
	switch {
	case cfg.MaxHold > 0:
		v.maxHold = cfg.MaxHold
	case cfg.MaxHold == 0:
		v.maxHold = defaultMaxHold
	}
	v.hold = min(firstHold, v.maxHold)
	begin := time.Now()
	for off := int64(0); off < p.size.Load(); off += copyStep {
		n := min(copyStep, p.size.Load()-off)
		if err := v.step(ctx, off, n); err != nil {
			return differ, v.why(err)
		}
		if cfg.BytesPerSecond > 0 {
			due := begin.Add(time.Duration(float64(off+n) / float64(cfg.BytesPerSecond) * float64(time.Second)))
			if wait.For(ctx, time.Until(due)) != nil {
				return differ, ctx.Err()
			}
		}
	}
	p.cfg.Events.Publish(event.DiskVerified{
		Disk: p.cfg.Name, Compared: v.compared, Different: differ.Bytes(), Repaired: v.repaired,
		Undecided: v.undecided.Bytes(), ElapsedNS: time.Since(begin).Nanoseconds(),
	})
	if !v.undecided.Empty() {
		return differ, &UndecidedError{v.undecided}
	}
	return differ, nil
}

// why adds to ErrNotRunning what has ended the use of the connection.
func (v *verifier) why(err error) error {
	switch {
	case !errors.Is(err, ErrNotRunning):
		return err
	case v.p.size.Load() != v.differ.bits.Load().size:
		return fmt.Errorf("%w: verify: the disk has grown meanwhile, verify again", err)
	}
	return fmt.Errorf("%w: verify: the secondary was detached or replaced meanwhile", err)
}

// How a chunk is compared that differs and is changed all the time.
const (
	freeTries      = 3                      // how often it is compared without keeping writes away
	firstHold      = 100 * time.Millisecond // for how long they are kept away then
	defaultMaxHold = 2 * time.Second        // and at most
)

// verifier is one run of VerifyOnline.
type verifier struct {
	p                  *Primary
	f                  *Forwarder
	cfg                VerifyConfig
	differ, undecided  *Bitmap
	ours, theirs       []byte     // what look has read; theirs only where bytes are compared, or repair the primary
	found              [][2]int64 // the chunks that differ in that
	compared, repaired int64
	hold, maxHold      time.Duration // for how long the next writes are kept away, and may be
	half, full         bool          // the room for pre-images is half full, or too small for a repair
}

// step compares a range, and again the chunks that differ and were changed meanwhile.
func (v *verifier) step(ctx context.Context, off, n int64) error {
	todo := [][2]int64{{off, n}}
	for tries := 0; len(todo) > 0; tries++ {
		compare := v.compare
		if tries >= freeTries {
			compare = v.compareLocked
		}
		freed := v.p.room.wait()
		h := v.p.locks.lock(off, n, false) // no change is between its record and its forwarding
		before := v.p.peer.changes.of(off, n)
		v.p.locks.unlock(h)
		if err := cmp.Or(ctx.Err(), v.f.arrived(ctx, off, n)); err != nil {
			return err
		}
		var again [][2]int64
		for _, d := range todo {
			for at, end := d[0], d[0]+d[1]; at < end; {
				run, dirty := v.p.peer.dirty.run(at, end-at)
				if !dirty {
					left, err := compare(ctx, at, run, before[(at-off)/ChunkSize:])
					if err != nil {
						return err
					}
					again = append(again, left...)
				}
				at += run
			}
		}
		if v.half && !v.p.room.asked.Load() {
			v.p.askForCheckpoint(false)
		}
		if v.full {
			if err := v.awaitRoom(ctx, freed); err != nil {
				return err
			}
			v.full = false
			tries--
		}
		todo = again
	}
	return nil
}

// awaitRoom waits for the Mark after which the secondary has room for pre-images again. The
// caller holds no lock.
func (v *verifier) awaitRoom(ctx context.Context, freed <-chan struct{}) error {
	v.p.askForCheckpoint(true)
	t := time.NewTimer(v.p.cfg.Forward.timeout())
	defer t.Stop()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("replication: verify: no checkpoint has made room for a repair: %w", ErrFull)
	}
}

// compare compares a range, of whose chunks before are the counts of changes before what was on
// its way had arrived, and returns the chunks that are to be compared again.
func (v *verifier) compare(_ context.Context, off, n int64, before []uint32) (again [][2]int64, err error) {
	if err := v.look(off, n); err != nil {
		return nil, err
	}
	v.compared += n
	for _, d := range v.found {
		h := v.p.locks.lock(d[0], d[1], false)
		if err := v.f.gone(); err != nil { // what was read may be of the time after
			v.p.locks.unlock(h)
			return nil, err
		}
		done := v.p.peer.changes.of(d[0], d[1])[0] == before[(d[0]-off)/ChunkSize] && !v.p.peer.dirty.Any(d[0], d[1])
		if done {
			done, err = v.differs(d, off)
		}
		v.p.locks.unlock(h)
		if err != nil {
			return nil, err
		}
		if !done {
			v.compared -= d[1]
			again = append(again, d)
		}
	}
	return again, nil
}

// compareLocked does what compare does for one chunk, and keeps writes to it away meanwhile.
func (v *verifier) compareLocked(ctx context.Context, off, n int64, _ []uint32) ([][2]int64, error) {
	if v.maxHold <= 0 {
		v.undecided.Set(off, n)
		return nil, nil
	}
	again := [][2]int64{{off, n}}
	h := v.p.locks.lock(off, n, false)
	unlock := sync.OnceFunc(func() { v.p.locks.unlock(h) })
	defer unlock()
	held, end := context.WithTimeout(ctx, v.hold)
	defer end()
	begin, looked := time.Now(), make(chan struct{})
	var failed error
	go func() {
		defer close(looked)
		if failed = v.f.arrived(held, off, n); failed == nil {
			failed = v.look(off, n)
		}
	}()
	inTime := v.inTime(held, looked)
	if !inTime {
		unlock()
		<-looked
	}
	longest := v.hold == v.maxHold
	v.hold = min(max(v.hold, 2*time.Since(begin)), v.maxHold)
	switch err := cmp.Or(ctx.Err(), v.f.gone()); {
	case err != nil:
		return nil, err
	case failed == nil && !inTime || failed != nil && failed == held.Err():
		if longest {
			v.undecided.Set(off, n)
			return nil, nil
		}
		return again, nil
	case failed != nil:
		return nil, failed
	}
	for _, d := range v.found { // the chunk, or nothing
		if done, err := v.differs(d, off); !done {
			return again, err
		}
	}
	v.compared += n
	return nil, nil
}

// inTime waits for looked, and reports false if held ends before, or the secondary is given up.
func (v *verifier) inTime(held context.Context, looked <-chan struct{}) bool {
	for {
		freed := v.p.room.wait() // tells of the end of the Forwarder too
		if v.f.gone() != nil {
			return false
		}
		select {
		case <-looked:
			return true
		case <-held.Done():
			return false
		case <-freed:
		}
	}
}

// look reads a range on both sides, and finds the chunks that differ.
func (v *verifier) look(off, n int64) error {
	ours, theirs := v.ours[:n], v.theirs[:n]
	var sums chunkTable
	if v.cfg.Sums != nil {
		if err := sums.read(v.cfg.Sums, off, len(ours)); err != nil {
			return err
		}
	} else if err := v.readTheirs(theirs, off); err != nil {
		return err
	}
	if err := readFull(v.p.local, ours, off); err != nil {
		return fmt.Errorf("replication: verify: %w", err)
	}
	v.found = v.found[:0]
	if v.cfg.Sums == nil {
		for at := int64(0); at < n; at += ChunkSize {
			to := min(at+ChunkSize, n)
			if !bytes.Equal(ours[at:to], theirs[at:to]) {
				v.found = append(v.found, [2]int64{off + at, to - at})
			}
		}
		return nil
	}
	sums.compare(off, ours, func(off, n int64) { v.found = append(v.found, [2]int64{off, n}) })
	if v.cfg.Repair == RepairPrimary {
		for _, d := range v.found {
			if err := v.readTheirs(theirs[d[0]-off:][:d[1]], d[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) readTheirs(p []byte, off int64) error {
	if err := readFull(v.cfg.Secondary, p, off); err != nil {
		return fmt.Errorf("replication: verify: the secondary: %w", err)
	}
	return nil
}

// differs records that a chunk differs, and repairs it with what look has read from off on. It
// reports false, without an error, if there is no room for that. The chunk is locked, and both
// sides are as they were read.
func (v *verifier) differs(d [2]int64, off int64) (done bool, err error) {
	v.differ.Set(d[0], d[1])
	err = v.repair(v.ours[d[0]-off:][:d[1]], v.theirs[d[0]-off:][:d[1]], d[0])
	if err == errNoRoom {
		v.full = true
		return false, nil
	}
	return err == nil, err
}

// repair overwrites one copy at off with the other; ours and theirs are their contents. The error
// is errNoRoom if the secondary has no room for all of what that replaces; a part may be
// repaired then.
func (v *verifier) repair(ours, theirs []byte, off int64) error {
	n := int64(len(ours))
	if err := v.p.localFailed(); err != nil && v.cfg.Repair != RepairNone {
		return err // what was read may be older than what the secondary has
	}
	switch v.cfg.Repair {
	case RepairSecondary:
		if err := v.p.peer.begin(off, n); err != nil {
			return err
		}
		for c := int64(0); len(ours) > 0; ours, off = ours[c:], off+c {
			c = min(int64(len(ours)), v.p.room.most())
			half, err := v.p.room.takeData(off, c)
			switch v.half = v.half || half; {
			case err != nil && !v.p.room.ever(off, c):
				return fmt.Errorf("replication: verify: no checkpoint makes room for a repair: %w", ErrFull)
			case err != nil:
				return errNoRoom
			}
			if _, err := v.f.send(ours[:c], off, c, false); err != nil {
				v.p.peer.dirty.Set(off, c)
				return err
			}
		}
	case RepairPrimary:
		if err := v.p.peer.begin(off, n); err != nil {
			return err
		}
		if err := writeFull(v.p.local, theirs, off); err != nil {
			v.p.peer.dirty.Set(off, n)
			return fmt.Errorf("replication: verify: %w", err)
		}
	default:
		return nil
	}
	v.repaired += n
	return nil
}
