package device

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// store is a disk in memory that can be made to fail and to wait.
type store struct {
	data    []byte
	err     error
	syncs   atomic.Int32
	syncErr error
	hold    chan struct{} // writes wait until it is closed
	begun   chan struct{} // sent to by a write that waits
}

func (s *store) Size() int64 { return int64(len(s.data)) }

func (s *store) Sync() error { s.syncs.Add(1); return cmp.Or(s.err, s.syncErr) }

func (s *store) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, s.data[off:])
	if off+int64(n) == int64(len(s.data)) {
		return n, io.EOF
	}
	return n, s.err
}

func (s *store) WriteAt(p []byte, off int64) (int, error) {
	if s.hold != nil {
		s.begun <- struct{}{}
		<-s.hold
	}
	if s.err != nil {
		return 0, s.err
	}
	return copy(s.data[off:], p), nil
}

const (
	testHeader = 0x80000 // where a driver puts headers
	testStatus = 0x80100
	testData   = 0x90000
)

// step has the first server look, and the backend flushed if that is asked for.
func (b *Blk) step() bool {
	more := b.servers[0].step()
	if b.servers[0].flush {
		open := NewGate()
		open.Open()
		b.servers[0].finish(context.Background(), open)
	}
	return more
}

type blkRig struct {
	*board
	*ring
	blk  *Blk
	disk *store
}

func newBlkRig(t testing.TB, size int) *blkRig {
	b := newBoard(t)
	disk := &store{data: make([]byte, size)}
	blk := NewBlk(disk, 1, "lockstep", b.memory(), b.line, nil)
	r := &blkRig{b, newRing(b, blk, 0, 0x10000), blk, disk}
	r.out(regFeatures, 4, blkFlush)
	return r
}

// request offers a request at descriptor 0.
func (r *blkRig) request(kind uint32, sector uint64, data ...part) {
	h := r.mem[testHeader:]
	binary.LittleEndian.PutUint32(h, kind)
	binary.LittleEndian.PutUint64(h[8:], sector)
	r.mem[testStatus] = 0xee
	parts := append([]part{{testHeader, blkHeader, false}}, data...)
	r.offer(0, append(parts, part{testStatus, 1, true})...)
}

// wantStatus serves the request and checks its answer.
func (r *blkRig) wantStatus(why string, want uint8, n uint32) {
	r.t.Helper()
	r.watch(func() { drain(r.blk.step) })
	r.want(why, usedEntry{0, n})
	if got := r.mem[testStatus]; got != want {
		r.t.Errorf("%s: status %d, want %d", why, got, want)
	}
}

func TestADiskHasWhatWasWrittenHoweverItWasCutUp(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	model := make([]byte, 1<<20)
	random := rand.New(rand.NewPCG(1, 2))
	cut := func(n int, write bool) (list []part) {
		for at := 0; at < n; {
			k := min(1+random.IntN(3000), n-at)
			list = append(list, part{testData + uint64(at), uint32(k), write})
			at += k
		}
		return list
	}
	for range 300 {
		n := (1 + random.IntN(40)) * SectorSize
		sector := random.IntN((1<<20 - n) / SectorSize)
		at := sector * SectorSize
		data := r.mem[testData:][:n]
		if random.IntN(2) == 0 {
			for i := range data {
				data[i] = byte(random.Uint32())
			}
			copy(model[at:], data)
			r.request(blkOut, uint64(sector), cut(n, false)...)
			r.wantStatus("write", blkOK, 1)
			continue
		}
		clear(data)
		r.request(blkIn, uint64(sector), cut(n, true)...)
		r.wantStatus("read", blkOK, uint32(n)+1)
		if !bytes.Equal(data, model[at:][:n]) {
			t.Fatalf("%d bytes at sector %d differ from what was written", n, sector)
		}
	}
	if !bytes.Equal(r.disk.data, model) {
		t.Error("the disk differs from what was written")
	}
}

func TestARequestIsAnsweredByTheRules(t *testing.T) {
	data := func(n uint32, write bool) part { return part{testData, n, write} }
	for _, c := range []struct {
		name   string
		kind   uint32
		sector uint64
		parts  []part
		fail   error
		status uint8
		n      uint32
	}{
		{"last sector", blkIn, 2047, []part{data(512, true)}, nil, blkOK, 513},
		{"one beyond", blkIn, 2048, []part{data(512, true)}, nil, blkIOErr, 1},
		{"across the end", blkOut, 2047, []part{data(1024, false)}, nil, blkIOErr, 1},
		{"a sector that overflows", blkOut, 1 << 55, []part{data(512, false)}, nil, blkIOErr, 1},
		{"the last sector that there is", blkIn, 1<<64 - 1, []part{data(512, true)}, nil, blkIOErr, 1},
		{"half a sector", blkOut, 0, []part{data(256, false)}, nil, blkIOErr, 1},
		{"nothing", blkOut, 0, nil, nil, blkOK, 1},
		{"sync", blkSync, 0, nil, nil, blkOK, 1},
		{"sync that fails", blkSync, 0, nil, errors.New("no"), blkIOErr, 1},
		{"write that fails", blkOut, 0, []part{data(512, false)}, errors.New("no"), blkIOErr, 1},
		{"read that fails", blkIn, 0, []part{data(512, true)}, errors.New("no"), blkIOErr, 1},
		{"identity", blkGetID, 0, []part{data(20, true)}, nil, blkOK, 21},
		{"identity, with room to spare", blkGetID, 0, []part{data(512, true)}, nil, blkOK, 21},
		{"identity, short", blkGetID, 0, []part{data(3, true)}, nil, blkOK, 4},
		{"something else", 77, 0, []part{data(512, true)}, nil, blkUnsupported, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newBlkRig(t, 1<<20)
			// A read that fails must not be one that reaches the end.
			r.disk.err = c.fail
			r.request(c.kind, c.sector, c.parts...)
			r.wantStatus(c.name, c.status, c.n)
			if level, _ := r.raised(); !level {
				t.Error("no interrupt")
			}
			if isr := r.in(regISR, 1); isr != isrQueue {
				t.Errorf("interrupt status %#x", isr)
			}
			if level, _ := r.raised(); level || r.in(regISR, 1) != 0 {
				t.Error("reading the interrupt status does not acknowledge")
			}
		})
	}
}

func TestARequestWithoutRoomForItsAnswerBreaksTheDisk(t *testing.T) {
	for name, parts := range map[string][]part{
		"no status":    {{testHeader, blkHeader, false}},
		"short header": {{testHeader, blkHeader - 1, false}, {testStatus, 1, true}},
		"empty":        {{testHeader, 0, false}},
	} {
		r := newBlkRig(t, 1<<20)
		r.offer(0, parts...)
		r.untouched(name, func() { drain(r.blk.step) })
		if !r.blk.queues[0].broken {
			t.Error(name, "is served")
		}
	}
}

func TestADiskHasTheSizeOfItsBackend(t *testing.T) {
	r := newBlkRig(t, 3*SectorSize+17)
	if got := r.in(regConfig, 4); got != 3 {
		t.Errorf("%d sectors, want 3", got)
	}
	if r.in(regSize, 2) != QueueSize {
		t.Error("queue size", r.in(regSize, 2))
	}
	if f := r.in(regOffered, 4); f&blkFlush == 0 || f&blkSegMax == 0 {
		t.Errorf("features %#x", f)
	}
	r.out(regFeatures, 4, 1<<31|blkFlush)
	if f := r.in(regFeatures, 4); f != blkFlush {
		t.Errorf("features %#x taken, which were not all offered", f)
	}
	r.out(regSelect, 2, 5)
	r.out(regPFN, 4, 9)
	if r.in(regSize, 2) != 0 || r.in(regPFN, 4) != 0 {
		t.Error("there is a queue 5")
	}
}

func TestTheRingGoesRoundAndRound(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	for i := range 70000 { // past the wrap of the 16-bit indices
		r.request(blkSync, 0)
		r.kick()
		drain(r.blk.step)
		r.want("sync", usedEntry{0, 1})
		if t.Failed() {
			t.Fatal("round", i)
		}
	}
	if r.disk.syncs.Load() != 70000 {
		t.Error(r.disk.syncs.Load())
	}
}

func TestADriverThatWantsNoInterruptGetsNone(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	r.mem[r.base+availAt] = availNoInterrupt
	r.request(blkSync, 0)
	drain(r.blk.step)
	r.want("sync", usedEntry{0, 1})
	if level, rises := r.raised(); level || rises > 0 {
		t.Error("interrupt")
	}
}

// A pause waits for the request that was begun, and no longer than its context; the
// next one stays in the ring.
func TestClosingTheGateWaitsForTheRequestThatWasBegun(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	r.disk.hold, r.disk.begun = make(chan struct{}), make(chan struct{})
	run(r.blk.Work, r.gate, func() {
		r.request(blkOut, 0, part{testData, 512, false})
		r.offer(8, part{testHeader, blkHeader, false}, part{testData, 512, false}, part{testStatus + 1, 1, true})
		r.mem[testStatus+1] = 0xee
		r.kick()
		<-r.disk.begun
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.gate.Close(ctx); !errors.Is(err, context.Canceled) {
			t.Error("a gate with a request inside closes:", err)
		}
		close(r.disk.hold)
		must(t, r.gate.Close(t.Context()))
		r.want("the request that was begun", usedEntry{0, 1})
		if r.mem[testStatus+1] != 0xee {
			t.Error("a request was begun behind the gate")
		}
		go func() { <-r.disk.begun }()
		r.in(regISR, 1) // before the next can raise the line, which would be no second rise
		r.gate.Open()
		for {
			if level, rises := r.raised(); level && rises > 1 {
				break
			}
		}
		r.want("the next", usedEntry{8, 1})
	})
}

// A request may be longer than what the backend is given at a time: the driver names the same memory
// again and again. If the backend fails at the second piece, so does the request.
func TestARequestLongerThanAPieceIsServedWhole(t *testing.T) {
	const each, again = 64 << 10, blkChunk / (64 << 10)
	parts := func(write bool) (list []part) {
		for range again {
			list = append(list, part{testData, each, write})
		}
		for i := range uint64(4) {
			list = append(list, part{testData + (1+i)*each, each, write})
		}
		return list
	}
	random := rand.NewChaCha8([32]byte{1})
	r := newBlkRig(t, 2<<20)
	random.Read(r.mem[testData:][:5*each])
	want := append(bytes.Repeat(r.mem[testData:][:each], again), r.mem[testData+each:][:4*each]...)
	r.request(blkOut, 0, parts(false)...)
	r.wantStatus("write", blkOK, 1)
	if !bytes.Equal(r.disk.data[:len(want)], want) {
		t.Error("the disk has something else than what was written")
	}
	random.Read(r.disk.data)
	r.request(blkIn, 0, parts(true)...)
	r.wantStatus("read", blkOK, blkChunk+4*each+1)
	if !bytes.Equal(r.mem[testData:][:5*each], r.disk.data[blkChunk-each:][:5*each]) {
		t.Error("something else is read than what the disk has")
	}
	for kind, n := range map[uint32]uint32{blkOut: 1, blkIn: blkChunk + 1} {
		r.blk.backend = &late{store: r.disk}
		r.request(kind, 0, parts(kind == blkIn)...)
		r.wantStatus("a second piece that fails", blkIOErr, n)
	}
}

func TestServingADiskAllocatesNothing(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	mark := r.blk.mem.mark
	defer func() { r.blk.mem.mark = mark }()
	r.blk.mem.mark = func(uint64, uint64) {}
	for name, kind := range map[string]uint32{"read": blkIn, "write": blkOut} {
		if n := testing.AllocsPerRun(200, func() {
			h := r.mem[testHeader:]
			binary.LittleEndian.PutUint32(h, kind)
			r.desc(0, part{testHeader, blkHeader, false}, descNext, 1)
			r.desc(1, part{testData, 8192, kind == blkIn}, descNext, 2)
			r.desc(2, part{testStatus, 1, true}, 0, 0)
			r.push(0)
			r.blk.notify(0) // without the test's own path through Out
			for r.blk.step() {
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// A driver that does not flush takes a write that was answered for stable. It has not taken the feature, or was
// reset, or has been moved here.
func TestAWriteOfADriverThatDoesNotFlushIsStableBeforeItIsAnswered(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	write := func(why string, syncs int32, fail error, status uint8) {
		t.Helper()
		before := r.disk.syncs.Load()
		r.disk.syncErr = fail
		r.request(blkOut, 1, part{testData, SectorSize, false})
		r.watch(func() { drain(r.blk.step) })
		if n := r.disk.syncs.Load() - before; n != syncs || r.mem[testStatus] != status {
			t.Errorf("%s: %d syncs and status %d, want %d and %d", why, n, r.mem[testStatus], syncs, status)
		}
	}
	write("it flushes", 0, nil, blkOK)
	r.out(regFeatures, 4, blkSegMax)
	write("it does not", 1, nil, blkOK)
	write("the sync fails", 1, errors.New("no"), blkIOErr)
	r.out(regFeatures, 4, blkFlush)
	state := stream(t, r.blk)
	r.out(regFeatures, 4, 0)
	must(t, load(r.blk, state))
	write("a state of one that flushes", 0, nil, blkOK)
	r.request(blkIn, 1, part{testData, SectorSize, true})
	r.out(regFeatures, 4, 0)
	before := r.disk.syncs.Load()
	drain(r.blk.step)
	if r.disk.syncs.Load() != before {
		t.Error("a sync for what was read")
	}
}
