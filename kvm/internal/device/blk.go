package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/gocolo/lockstep/vmstate"
)

// SectorSize is the unit in which a guest counts its disk.
const SectorSize = 512

// Features, requests and answers of a disk. (Virtio 1.1, section 5.2.)
const (
	blkSegMax = 1 << 2 // VIRTIO_BLK_F_SEG_MAX
	blkFlush  = 1 << 9 // VIRTIO_BLK_F_FLUSH

	blkIn    = 0
	blkOut   = 1
	blkSync  = 4
	blkGetID = 8

	blkOK          = 0
	blkIOErr       = 1
	blkUnsupported = 2

	blkHeader = 16
	blkIDSize = 20
)

// Backend holds the contents of a Blk. See pc.Storage.
type Backend interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Sync() error
}

// Blk is a virtio disk. It begins requests in the order in which they were made
// available, on the goroutines of Work, and serves as many at once as it was told; they
// are answered in the order in which they end. A long request is performed in parts, between which
// the guest may be paused, or reset the disk: what is left of it is state. So is a flush that the
// backend has not answered, for which neither a pause nor a reset waits: a guest that is put back
// to such a state, or taken over in it, has it made anew. The backend never
// sees the guest's memory, which the guest may change at any time: what is written is
// copied first, so that all parts of the backend (the copies of a disk) get the same bytes.
//
// A driver that has not taken the feature to flush takes every write that was answered for stable,
// so that each is made stable first. (Virtio 1.1, section 5.2.6.2.)
type Blk struct {
	virtio
	backend Backend
	id      string
	servers []*blkServer
	untold  bool   // a flush has failed of which no driver has heard; under mu
	has     uint64 // sectors that it is to have, of which the guest may not have been told; under mu
}

// blkServer serves one request at a time.
type blkServer struct {
	*Blk
	buf    []byte
	list   []segment // of the request: what is read, then what is written
	stable bool      // a write is made stable before it is answered
	length uint64    // sectors that the guest was told of when the step began
	flush  bool      // step has left a request for which the backend is to be flushed
}

// blkChunk is how much of a request is passed to the backend at a time: the longest part.
const blkChunk = 1 << 20

// MaxRequests is the most that a Blk serves at once.
const MaxRequests = 64

// NewBlk returns a disk that serves so many requests at once, from 1 to MaxRequests. id is
// what it says of itself, of which 20 bytes count. log may be nil.
func NewBlk(backend Backend, requests int, id string, mem *Memory, line Line, log *slog.Logger) *Blk {
	b := &Blk{
		backend: backend,
		id:      id,
		has:     sectorsOf(backend.Size()),
	}
	for range min(max(requests, 1), MaxRequests) {
		b.servers = append(b.servers, &blkServer{Blk: b, buf: make([]byte, blkChunk), list: make([]segment, 0, QueueSize)})
	}
	config := make([]byte, 60)
	binary.LittleEndian.PutUint64(config, b.has)
	binary.LittleEndian.PutUint32(config[12:], QueueSize-2) // segments beside header and status
	b.init(1, blkSegMax|blkFlush, config, mem, line, log)
	b.varies, b.settled = blkCapacity, b.tell
	b.queues[0].parts, b.saved.queues[0].parts = true, true
	b.notify = func(int) { b.work.kick() }
	return b
}

// Work serves requests until ctx ends, and returns when none is being served.
func (b *Blk) Work(ctx context.Context, gate *Gate) {
	var others sync.WaitGroup
	for _, s := range b.servers[1:] {
		others.Go(func() { b.work.run(ctx, gate, s.step, s.finish) })
	}
	b.work.run(ctx, gate, b.servers[0].step, b.servers[0].finish)
	others.Wait()
}

// Kick has Work look for requests, after Apply or after a time in which Work
// did not run.
func (b *Blk) Kick() { b.work.kick() }

// step serves one part of a request, and wakes another server if there are more.
func (b *blkServer) step() (more bool) {
	b.mu.Lock()
	q := &b.queues[0]
	r, c, ok := b.next(0)
	if !ok {
		b.mu.Unlock()
		return false
	}
	out, in := size(c.out), size(c.in)
	if out < blkHeader || in < 1 {
		q.broken = true
		b.rules.log(b.log, slog.LevelWarn, "the guest broke the rules of its disk, which is left alone until it resets it", "read", out, "write", in)
		b.mu.Unlock()
		return false
	}
	// The next chain uses the segments of the queue again.
	b.list = append(append(b.list[:0], c.out...), c.in...)
	c.out, c.in = b.list[:len(c.out)], b.list[len(c.out):]
	b.stable, b.length = b.features&blkFlush == 0, b.sectors()
	b.busy++
	if len(b.servers) > 1 && (q.waiting() >= 0 || q.more()) {
		b.work.kick()
	}
	b.mu.Unlock()

	status, written, ended := b.serve(c, &r, out-blkHeader, in-1)
	if ended && !b.flush {
		b.mem.scatter([]byte{status}, c.in, in-1)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	b.release()
	if !ended || b.flush {
		if b.flush {
			r.by = b
		}
		q.begun = append(q.begun, r)
		return true
	}
	q.push(c.head, uint32(written)+1)
	b.interrupt(0)
	return true
}

// serve performs the next part of a request with out bytes of data to read from the guest, or in
// bytes to write to it. If that was the last part, ended is true, and serve returns the status of
// the request and how many bytes it wrote. It sets flush where what is left is to have the backend
// flushed, whose answer is the status. The guest may have changed its request since the last
// part, which harms nobody else.
func (b *blkServer) serve(c chain, r *begun, out, in uint64) (status uint8, written uint64, ended bool) {
	header := b.buf[:blkHeader]
	b.mem.gather(header, c.out, 0)
	kind, sector := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint64(header[8:])
	switch kind {
	case blkIn:
		if !b.within(sector, in) || r.done > in {
			return blkIOErr, 0, true
		}
		if status = b.read(c.in, int64(sector*SectorSize), in, r); status != blkOK {
			return status, r.done, true
		}
		return status, r.done, r.done == in
	case blkOut:
		if !b.within(sector, out) || r.done > out {
			return blkIOErr, 0, true
		}
		if status = b.write(c.out, int64(sector*SectorSize), out, r); status != blkOK {
			return status, 0, true
		}
		ended = r.done == out
		b.flush = ended && b.stable
		return status, 0, ended
	case blkSync:
		b.flush = true
		return blkOK, 0, true
	case blkGetID:
		var id [blkIDSize]byte
		copy(id[:], b.id)
		n := min(in, blkIDSize)
		b.mem.scatter(id[:n], c.in, 0)
		return blkOK, n, true
	}
	return blkUnsupported, 0, true
}

// within reports whether n bytes from a sector on are whole sectors of the disk.
func (b *blkServer) within(sector, n uint64) bool {
	return n%SectorSize == 0 && sector <= b.length && n/SectorSize <= b.length-sector
}

// read performs a part of a request for n bytes from off on.
func (b *blkServer) read(list []segment, off int64, n uint64, r *begun) (status uint8) {
	p := b.buf[:min(n-r.done, uint64(len(b.buf)))]
	if len(p) == 0 {
		return blkOK
	}
	k, err := b.backend.ReadAt(p, off+int64(r.done))
	if k == len(p) && errors.Is(err, io.EOF) { // it may come with the last of the disk
		err = nil
	}
	if err != nil {
		return b.answer("read", err)
	}
	b.mem.scatter(p, list, r.done)
	r.done += uint64(len(p))
	return blkOK
}

// write performs a part of a request to write n bytes from off on.
func (b *blkServer) write(list []segment, off int64, n uint64, r *begun) (status uint8) {
	p := b.buf[:min(n-r.done, uint64(len(b.buf)))]
	if len(p) == 0 {
		return blkOK
	}
	b.mem.gather(p, list, blkHeader+r.done)
	if _, err := b.backend.WriteAt(p, off+int64(r.done)); err != nil {
		return b.answer("write", err)
	}
	r.done += uint64(len(p))
	return blkOK
}

func (b *Blk) answer(op string, err error) uint8 {
	if err != nil {
		b.faults.log(b.log, slog.LevelError, "the guest's disk failed", "op", op, "err", err)
		return blkIOErr
	}
	return blkOK
}

// VMState implements vmstate.Device. A paused disk serves no request, so there is
// nothing but its registers and queue, with the requests of which a part was performed. How long the
// guest was told that its disk is comes with the configuration. The backend must be at least as long.
func (b *Blk) VMState(f *vmstate.Fields) {
	b.fields(f, 0)
	if n, here := binary.LittleEndian.Uint64(b.wire), sectorsOf(b.backend.Size()); f.Loading() && f.Err() == nil && n > here {
		f.Fail(&vmstate.FieldError{Field: "capacity", Err: fmt.Errorf("the guest's disk has %d sectors of %d bytes, the one here %d: %w", n, SectorSize, here, vmstate.ErrValue)})
	}
}
