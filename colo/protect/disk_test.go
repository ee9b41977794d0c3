package protect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

const diskSize = 1 << 20

// An image is a disk in memory. What was written and not made stable may be gone
// after a power cut.
type image struct {
	mu     sync.Mutex
	b      []byte
	fail   error          // of each sync from now on
	blind  error          // of each read from now on
	failed atomic.Bool    // it has ever
	slow   time.Duration  // of each request
	loose  map[int][]byte // sectors that are not stable, as they were
	free   [][]byte       // memory of those that have become stable
}

const sectorSize = 512

func (d *image) ReadAt(p []byte, off int64) (int, error) {
	d.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blind != nil {
		return 0, d.blind
	}
	return copy(p, d.b[off:]), nil
}

func (d *image) WriteAt(p []byte, off int64) (int, error) { return d.writeAs(nil, p, off) }

func (d *image) writeAs(h *host, p []byte, off int64) (int, error) {
	d.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if h != nil && h.gone.Load() {
		return 0, errDead
	}
	if d.loose != nil {
		for s := int(off) / sectorSize; s*sectorSize < int(off)+len(p); s++ {
			if d.loose[s] == nil {
				d.loose[s] = append(d.spare(), d.b[s*sectorSize:(s+1)*sectorSize]...)
			}
		}
	}
	return copy(d.b[off:], p), nil
}

func (d *image) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.b))
}

func (d *image) Sync() error {
	d.wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		for _, b := range d.loose {
			d.free = append(d.free, b)
		}
		clear(d.loose)
	}
	return d.fail
}

// spare returns room for a sector. d.mu is held.
func (d *image) spare() (b []byte) {
	if n := len(d.free); n > 0 {
		b, d.free = d.free[n-1][:0], d.free[:n-1]
	}
	return b
}

// ofProcess is an image as a process of a host has it open: one that was killed writes nothing
// more, whatever of it runs on here. The next process may have the image by then.
type ofProcess struct {
	*image
	h *host
}

func (d ofProcess) WriteAt(p []byte, off int64) (int, error) { return d.writeAs(d.h, p, off) }

func (d ofProcess) Sync() error {
	if d.h.gone.Load() {
		return errDead
	}
	return d.image.Sync()
}

func (d *image) wait() {
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
}

func (d *image) breaks(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = why
	if why != nil {
		d.failed.Store(true)
	}
}

// blinds makes each read fail from now on.
func (d *image) blinds(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blind = why
}

func (d *image) slows(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = by
}

// settle makes stable what was written, as the system does in time.
func (d *image) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.loose)
}

// powerCut takes away every other of the sectors that are not stable.
func (d *image) powerCut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := 0; s < len(d.b)/sectorSize; s += 2 {
		if was := d.loose[s]; was != nil {
			copy(d.b[s*sectorSize:], was)
		}
	}
	clear(d.loose)
}

// A write is one that a guest made in a round.
type write struct {
	off    int64
	data   string
	failed bool // the guest was told so: nobody knows what is there
	flush  bool // it was made stable, with all before it
}

// write makes a write of the guest.
func (h *host) write(p []byte, off int64, flush bool) error {
	h.pace()
	disk, at, vcpu := h.placeOf(off)
	_, err := disk.WriteAt(p, at)
	if err == nil && flush {
		err = disk.Sync()
	}
	h.pace()
	h.wrote[vcpu] = append(h.wrote[vcpu], write{off, string(p), err != nil, flush})
	h.trace("disk", int(off))
	if err != nil {
		return h.diskError(err)
	}
	return nil
}

// diskError is an error of the guest's disk, which it never sees unless its host
// has lost it, or the disk has failed.
func (h *host) diskError(err error) error {
	if s := h.job.State(); s.runs() && h.job.Gate().Open() && !h.diskHasFailed() && !h.gone.Load() {
		h.w.t.Errorf("the guest's disk on %s, %v: %v", h.name, s, err)
	}
	return nil
}

// noteWrites remembers what the round of a frame wrote.
func (w *world) noteWrites(h *host, frame []byte) {
	if !w.disks {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if wrote := &h.wrote[vCPUOf(frame)]; *wrote != nil {
		w.writes[binary.BigEndian.Uint64(frame[len(frame)-16:])] = *wrote
		*wrote = nil
	}
}

// verifyDisk checks that a host's disk is what the memory of its guest, which
// stands still, says.
func (w *world) verifyDisk(h *host) {
	w.t.Helper()
	history, err := h.guest.History()
	if err != nil {
		w.t.Fatal(err)
	}
	want, known := make([]byte, w.size), make([]bool, w.size/sectorSize)
	copy(want, w.base)
	for i := range known {
		known[i] = true
	}
	n := 0
	w.mu.Lock() // the other host's guest may run
	for _, round := range history {
		for _, wr := range w.writes[round] {
			n += copy(want[wr.off:], wr.data)
			for i := range len(wr.data) / sectorSize {
				known[int(wr.off)/sectorSize+i] = !wr.failed
			}
		}
	}
	w.mu.Unlock()
	got := make([]byte, 0, w.size)
	for _, d := range h.allDisks() {
		part := make([]byte, w.size/len(h.allDisks())) // it may have grown since
		if !d.image.failed.Load() {
			d.image.ReadAt(part, 0)
		} else if _, err := d.disk.ReadAt(part, 0); err != nil { // the guest may have gone on over what could not be written there
			w.t.Errorf("%s: %v", h.name, err)
			return
		}
		got = append(got, part...)
	}
	for i := 0; i < w.size; i += sectorSize {
		if known[i/sectorSize] && string(got[i:i+sectorSize]) != string(want[i:i+sectorSize]) {
			w.t.Errorf("%s: sector %d is not what the guest's %d rounds have written", h.name, i/sectorSize, len(history))
			return
		}
	}
	if n == 0 && len(history) > 16 {
		w.t.Errorf("%s: the guest has written nothing in %d rounds", h.name, len(history))
	}
}

// withDisk is bubble for a guest with a disk.
func withDisk(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.disks, w.term = true, 400*time.Millisecond
			w.guest.Disk, w.guest.DiskEvery, w.guest.Interval = diskSize, 2, time.Millisecond
			if testing.Short() {
				w.guest.Interval *= 3
			}
			w.forget()
			f(t, w)
			w.clean()
		})
	})
}

func TestDiskFollowsTheGuestThroughKills(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		withDisk(t, fmt.Sprintf("silent %v", silent), func(t *testing.T, w *world) {
			primary, secondary := w.protected()
			for range 2 {
				time.Sleep(730 * time.Millisecond)
				primary.kill(silent)
				secondary.is(Alone)
				primary.bury()
				time.Sleep(300 * time.Millisecond)
				back := w.boot(primary.name, false, nil)
				secondary.is(Protected)
				primary, secondary = secondary, back
			}
			time.Sleep(130 * time.Millisecond)
			secondary.kill(silent)
			primary.is(Alone)
			secondary.bury()
			secondary = w.boot(secondary.name, false, nil)
			primary.is(Protected)
			secondary.halt()
			primary.halt()
		})
	}
}

// The primary's disk loses what it was told to keep. The guest goes on where the disk
// is good, and nothing that it did after the failure was seen.
func TestAHostWhoseDiskFailsLeavesTheGuestToTheOther(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		primary, secondary := w.protected()
		time.Sleep(300 * time.Millisecond)
		primary.image.breaks(errors.New("the medium is worn out"))
		secondary.is(Alone)
		if s := primary.job.State(); s.runs() {
			t.Errorf("the host with the broken disk is %v", s)
		}
		said := ""
		primary.mu.Lock()
		for _, e := range primary.events {
			if c, ok := e.(event.JobStatusChange); ok {
				said += c.Reason + "\n"
			}
		}
		primary.mu.Unlock()
		if !strings.Contains(said, "the other host has the good copy") || !strings.Contains(said, "worn out") {
			t.Errorf("no change of its state names the disk's error:\n%s", said)
		}
		time.Sleep(300 * time.Millisecond)
		secondary.halt()
		primary.halt()
	})
}

func TestDiskFollowsTheGuestThroughSwitchovers(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		for round := range 4 {
			time.Sleep(230 * time.Millisecond)
			if err := a.job.Switchover(t.Context()); err != nil {
				t.Fatal(round, err)
			}
			b.is(Protected)
			a, b = b, a
		}
		b.halt()
		a.halt()
	})
}

func TestDiskFollowsTheGuestThroughPartitions(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		withDisk(t, fmt.Sprintf("silent %v", silent), func(t *testing.T, w *world) {
			a, b := w.protected()
			time.Sleep(310 * time.Millisecond)
			w.f.part("a", "b", silent)
			a.is(Alone)
			time.Sleep(200 * time.Millisecond)
			w.f.join("a", "b")
			a.is(Protected)
			b.is(Following)
			b.halt()
			a.halt()
		})
	}
}

// The primary is cut off from everybody: a write that its guest makes then is never
// answered, and the guest can be stopped all the same.
func TestHostThatIsCutOffAnswersNoWriteAndFollowsLater(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		short := func(c *Config) { c.PeerTimeout = 2 * time.Second } // for the pause of a guest that waits for its disk
		b := w.boot("b", false, short)
		a := w.boot("a", true, short)
		a.is(Protected)
		time.Sleep(200 * time.Millisecond)
		a.noArbiter.Store(true)
		w.f.part("a", "b", true)
		b.is(Alone)
		time.Sleep(200 * time.Millisecond)
		a.noArbiter.Store(false)
		w.f.join("a", "b")
		b.is(Protected)
		a.is(Following)
		time.Sleep(200 * time.Millisecond)
		a.halt()
		b.is(Alone)
		b.halt()
	})
}

func TestDisksThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, func(c *Config) { c.Disks = nil })
		a := w.boot("a", true, nil)
		var r *RefusedError
		w.until(func() bool { return errors.As(a.job.Query().LastError, &r) })
		b.halt()
		a.halt()
	})
}

// choosyImage is an image that is a connection to a server, which takes some writes only.
type choosyImage struct {
	*image
	block  int64
	writes error
}

func (c choosyImage) Align() int64       { return c.block }
func (c choosyImage) CheckWrites() error { return c.writes }

// What an image says of itself is asked before it has a job, and is still said by what the job
// has made of it.
func TestAnImageThatNoGuestCanWriteIsRefused(t *testing.T) {
	none := &image{b: make([]byte, 1000)}
	good := &image{b: make([]byte, 4096)}
	for _, x := range []struct {
		image replication.Disk
		want  error
	}{
		{none, replication.ErrSize},
		{choosyImage{good, 4096, nil}, replication.ErrSize},
		{choosyImage{good, 512, errors.ErrUnsupported}, errors.ErrUnsupported},
		{choosyImage{good, 512, nil}, nil},
	} {
		d, err := NewDisk(DiskConfig{Name: "root", Image: x.image})
		if !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
			t.Errorf("%+v: %v, want %v", x.image, err, x.want)
		}
		kept := &remembered{Disk: x.image}
		if err := replication.CheckDisk(kept); !errors.Is(err, x.want) {
			t.Errorf("%+v, of which something is known: %v, want %v", x.image, err, x.want)
		}
		if d != nil && replication.CheckDisk(d.image) != nil {
			t.Errorf("%+v is taken, and then refused", x.image)
		}
	}
}

func TestDiskBelongsToOneJob(t *testing.T) {
	if _, err := NewDisk(DiskConfig{Name: "", Image: &image{b: make([]byte, 512)}}); err == nil {
		t.Error("a disk without a name")
	}
	d, err := NewDisk(DiskConfig{Name: "root", Image: &image{b: make([]byte, 4096)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, errNoJob) {
		t.Errorf("before it has a job: %v", err)
	}
	if err := d.adopt(nil, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// A host whose gate is shut leaves, and its guest waits for its disk: the write is
// answered by an error, so that nothing waits for ever.
func TestHostThatLeavesAnswersWhatItsGuestWaitsFor(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks, w.guest.Disk, w.guest.DiskEvery = true, diskSize, 2
		w.forget()
		a := w.boot("a", true, nil)
		a.is(Alone)
		time.Sleep(500 * time.Millisecond)
		a.noArbiter.Store(true)
		time.Sleep(5 * time.Second)
		before := time.Now()
		a.halt()
		if took, most := time.Since(before), a.job.cfg.PeerTimeout; took >= most {
			t.Errorf("it took %v, as if the guest could not be paused", took)
		}
		if a.job.vm.isRunning() {
			t.Error("the guest runs on")
		}
	})
}
