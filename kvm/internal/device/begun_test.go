package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// counted is a store that says how much it was asked for at once, and calls a function at each part.
type counted struct {
	*store
	most, parts int
	each        func()
}

func (c *counted) part(p []byte) {
	c.parts++
	c.most = max(c.most, len(p))
	if c.each != nil {
		c.each()
	}
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.part(p)
	return c.store.ReadAt(p, off)
}

func (c *counted) WriteAt(p []byte, off int64) (int, error) {
	c.part(p)
	return c.store.WriteAt(p, off)
}

// parts returns the descriptors of a request for n bytes, which names the same memory again and again.
func parts(n int, write bool) (list []part) {
	const each = 64 << 10
	for ; n > 0; n -= each {
		list = append(list, part{testData, uint32(min(n, each)), write})
	}
	return list
}

// A guest may ask for gigabytes by one request. A pause waits for a part of it, of which the backend is
// asked at once, and not for the request; and the next Work goes on with it.
func TestAPauseWaitsForAPartOfARequestNotForAllOfIt(t *testing.T) {
	const size = 8 * blkChunk
	r := newBlkRig(t, size)
	disk := &counted{store: r.disk}
	r.blk.backend = disk
	for kind, n := range map[uint32]uint32{blkOut: 1, blkIn: size + 1} {
		r.request(kind, 0, parts(size, kind == blkIn)...)
		closed := make(chan error)
		disk.most, disk.parts = 0, 0
		disk.each = func() {
			if disk.parts == 1 { // the gate is being closed while the first part is with the backend
				go func() { closed <- r.gate.Close(t.Context()) }()
				for !r.awaited() {
					runtime.Gosched()
				}
			}
		}
		run(r.blk.Work, r.gate, func() {
			r.kick()
			must(t, <-closed)
			if disk.parts != 1 {
				t.Errorf("a pause that came in the first part waited for %d", disk.parts)
			}
			r.want("a part", []usedEntry{}...)
		})
		r.gate.Open()
		r.wantStatus("the rest", blkOK, n)
		if disk.parts != size/blkChunk || disk.most != blkChunk {
			t.Errorf("%d parts of at most %d bytes", disk.parts, disk.most)
		}
	}
}

// A guest that was paused in the midst of a request finds all of it performed, once it runs again or
// another host has taken it over, and is told of it once. Nothing of a request that was begun after the
// state is left in a device that was rolled back.
func TestARequestThatWasBegunGoesOnAfterAPause(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for _, kind := range []uint32{blkIn, blkOut} {
		for _, after := range []int{1, 3, 7} {
			from, to := newBlkRig(t, 64<<10), newBlkRig(t, 64<<10)
			const n = 8 * SectorSize
			for _, r := range []*blkRig{from, to} {
				r.blk.servers[0].buf = make([]byte, SectorSize)
			}
			random.Read(from.disk.data)
			random.Read(from.mem[testData:][:n])
			from.request(kind, 3, part{testData, n, kind == blkIn})
			for range after {
				from.blk.step()
			}
			state := stream(t, from.blk)
			to.request(blkOut, 0, part{testData, n, false}) // of a time that is rolled back
			to.blk.step()
			copy(to.mem, from.mem)
			copy(to.disk.data, from.disk.data)
			must(t, load(to.blk, state))
			for _, r := range []*blkRig{from, to} {
				calls := &counted{store: r.disk}
				r.blk.backend = calls
				r.watch(func() { drain(r.blk.step) })
				written := uint32(1)
				if kind == blkIn {
					written += n
				}
				r.want("the request", usedEntry{0, written})
				if r.mem[testStatus] != blkOK || !bytes.Equal(r.mem[testData:][:n], r.disk.data[3*SectorSize:][:n]) {
					t.Errorf("request %d, after %d parts: status %d, or other bytes", kind, after, r.mem[testStatus])
				}
				if calls.parts != n/SectorSize-after {
					t.Errorf("request %d, after %d parts: %d more, of %d", kind, after, calls.parts, n/SectorSize)
				}
			}
			if !bytes.Equal(from.mem, to.mem) || !bytes.Equal(from.disk.data, to.disk.data) {
				t.Errorf("request %d, after %d parts: the two hosts have other bytes", kind, after)
			}
		}
	}
}

// A driver that resets its disk, or takes its queue elsewhere, does not wait for the rest of a request, and
// nothing more of that is performed, though the same is in the ring.
func TestNothingMoreOfARequestIsPerformedAfterAReset(t *testing.T) {
	const elsewhere = 0x40000
	for name, away := range map[string]func(r *blkRig){
		"reset": func(r *blkRig) {
			r.out(regStatus, 1, 0)
			r.out(regPFN, 4, uint32(r.base/queueAlign))
		},
		"elsewhere": func(r *blkRig) { r.out(regPFN, 4, elsewhere/queueAlign) },
	} {
		r := newBlkRig(t, 64<<10)
		r.blk.servers[0].buf = make([]byte, SectorSize)
		gone := make(chan struct{})
		disk := &counted{store: r.disk, each: func() {
			clear(r.mem[r.base+availAt:][:queueAlign])
			go func() { defer close(gone); away(r) }()
			for !r.awaited() {
				runtime.Gosched()
			}
		}}
		r.blk.backend = disk
		r.request(blkIn, 0, part{testData, 8 * SectorSize, true})
		copy(r.mem[elsewhere:], r.mem[r.base:][:availAt])
		r.blk.step()
		disk.each = nil
		r.blk.step() // perhaps before the driver has what it wants
		<-gone
		for range 10 {
			r.blk.step()
		}
		if disk.parts != 1 {
			t.Errorf("%s: %d parts were performed, want that in which it came", name, disk.parts)
		}
	}
}

// A host that is given a state without such requests has none of the state before.
func TestARequestThatWasBegunIsNotInTheNextState(t *testing.T) {
	r := newBlkRig(t, 64<<10)
	r.blk.servers[0].buf = make([]byte, SectorSize)
	none := stream(t, r.blk)
	r.request(blkIn, 0, part{testData, 8 * SectorSize, true})
	r.blk.step()
	some := stream(t, r.blk)
	clear(r.mem[r.base+availAt:][:queueAlign])
	must(t, load(r.blk, some))
	must(t, load(r.blk, none))
	r.untouched("another state", func() { drain(r.blk.step) })
}

// Requests that were begun are performed by as many at once as others are, and a write in parts is made stable once.
func TestRequestsThatWereBegunArePerformedAtOnce(t *testing.T) {
	b := newBoard(t)
	disk := &store{data: make([]byte, 1<<20), hold: make(chan struct{}), begun: make(chan struct{})}
	blk := NewBlk(disk, 2, "two", b.memory(), b.line, nil)
	r := &blkRig{b, newRing(b, blk, 0, 0x10000), blk, disk}
	for _, s := range blk.servers {
		s.buf = make([]byte, SectorSize)
	}
	for _, head := range []uint16{0, 8} {
		at := uint64(head)
		header := testHeader + 0x1000 + 0x20*at
		binary.LittleEndian.PutUint32(r.mem[header:], blkOut)
		binary.LittleEndian.PutUint64(r.mem[header+8:], at)
		r.offer(head, part{header, blkHeader, false}, part{testData, 4 * SectorSize, false}, part{testStatus + at, 1, true})
		blk.queues[0].begun = append(blk.queues[0].begun, begun{head: head, done: SectorSize})
		blk.queues[0].last++
	}
	run(blk.Work, r.gate, func() {
		blk.Kick()
		<-disk.begun
		<-disk.begun // the second, though nobody has let the first end
		go func() {
			for range 4 {
				<-disk.begun
			}
		}()
		close(disk.hold)
		for answered := 0; answered < 2; r.gate.Open() {
			must(t, r.gate.Close(t.Context()))
			answered += len(r.used())
		}
	})
	if n := disk.syncs.Load(); n != 2 {
		t.Errorf("%d syncs for two writes", n)
	}
}

// A guest that takes back what its request was, while that is performed, harms nobody else.
func TestARequestMayShrinkInTheMidst(t *testing.T) {
	for _, kind := range []uint32{blkIn, blkOut} {
		r := newBlkRig(t, 64<<10)
		r.blk.servers[0].buf = make([]byte, 4*SectorSize)
		r.request(kind, 0, part{testData, 8 * SectorSize, kind == blkIn})
		r.blk.step()
		r.desc(1, part{testData, 2 * SectorSize, kind == blkIn}, descNext, 2)
		r.wantStatus("less than was performed", blkIOErr, 1)
		r.request(kind, 0, part{testData, 8 * SectorSize, kind == blkIn})
		r.blk.step()
		r.desc(1, part{testData, 2 * SectorSize, kind == blkIn}, descIndirect, 2)
		r.untouched("a chain that breaks the rules", func() { drain(r.blk.step) })
		if !r.blk.queues[0].broken {
			t.Error("the ring is not broken")
		}
	}
}

// What a peer says was begun is in the ring, and there is not more of it than the ring has. Devices that perform no
// request in parts have none.
func TestRequestsThatNobodyCanHaveBegunAreRefused(t *testing.T) {
	good := func() *blkRig {
		r := newBlkRig(t, 64<<10)
		r.blk.queues[0].begun = []begun{{head: 1, done: 512}}
		return r
	}
	to := newBlkRig(t, 64<<10)
	must(t, load(to.blk, stream(t, good().blk)))
	before := stream(t, to.blk)
	for name, c := range map[string]struct {
		at, with string
		want     error
	}{
		"a descriptor behind the ring": {"\x00\x01\x00\x01", "\x00\x01\x01\x00", vmstate.ErrValue},
		"more than a chain has":        {"\x00\x01\x00\x01\x00\x00\x00\x00", "\x00\x01\x00\x01\x00\x00\x00\x01", vmstate.ErrValue},
		"a part of a sector":           {"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x02\x00", "\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x02\x01", vmstate.ErrValue},
		"more than a ring has":         {"\x00\x01\x00\x01", "\x01\x01\x00\x01", vmstate.ErrBounds},
		"none, though it says some":    {"\x00\x01\x00\x01", "\x00\x00\x00\x01", vmstate.ErrValue},
	} {
		begins := "virtqueue/begun\x00\x00\x00\x01" // its version is 1
		bad := bytes.Replace(before, []byte(begins+c.at), []byte(begins+c.with), 1)
		if bytes.Equal(bad, before) {
			t.Fatal("the stream is not as this test takes it to be")
		}
		if err := load(to.blk, bad); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(stream(t, to.blk), before) {
			t.Errorf("%s: half of it was taken", name)
		}
	}
	from, other := newRNGRig(t, "chance").rng, newRNGRig(t, "chance").rng
	from.queues[0].parts, from.saved.queues[0].parts, from.queues[0].begun = true, true, []begun{{head: 1, done: 1}}
	if err := load(other, stream(t, from)); !errors.Is(err, vmstate.ErrUnknownSubsection) {
		t.Errorf("a device that has no parts takes: %v", err)
	}
}
