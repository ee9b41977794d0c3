package qemufile

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

const (
	// writeBuffer holds what is put between two references, when it has grown to that.
	writeBuffer = 64 << 10

	// A Writer sends by itself when it has queued this much. Linux takes at
	// most 1024 pieces per writev.
	maxQueue      = 512
	maxQueueBytes = 1 << 20

	// smallRef is the length up to which copying is cheaper than a piece of
	// its own in the vectored write.
	smallRef = 256

	// directWrite is the length from which a write that finds no room is not
	// copied.
	directWrite = 16 << 10
)

// BuffersWriter is implemented by a connection that can write several pieces
// of memory in one call. TCP and Unix connections of package net need not: a
// Writer knows them. A connection that wraps one of them (to set deadlines, to
// count) forwards the call so that pages stay uncopied:
//
//	func (c *conn) WriteBuffers(b *net.Buffers) (int64, error) { return b.WriteTo(c.tcp) }
//
// WriteBuffers consumes b as [net.Buffers.WriteTo] does.
type BuffersWriter interface {
	WriteBuffers(*net.Buffers) (int64, error)
}

// How a Writer treats memory that is written by reference.
const (
	refQueue  = iota // vectored writes: queue it
	refDirect        // a memory buffer behind: write it through
	refCopy          // one call costs more than a copy: gather in the buffer
)

// A Writer puts the values of a migration stream into an [io.Writer].
//
// Nothing is sure to have left before Flush. The first error sticks: later puts
// go nowhere and Flush returns it.
//
// A Writer belongs to one goroutine at a time.
type Writer struct {
	dst     io.Writer
	vectors BuffersWriter
	refs    int // refQueue and so on

	buf    []byte
	queued int         // buf[:queued] is in the queue
	queue  net.Buffers // pieces of buf and references, in order
	refLen int         // bytes in references of the queue
	iov    net.Buffers // the queue while WriteTo consumes it

	out     int64 // bytes given to dst
	err     error
	meter   meter
	scratch [8]byte // where puts go after an error
}

// NewWriter returns a Writer to dst. The caller goes on owning dst: a Writer
// never closes it.
func NewWriter(dst io.Writer) *Writer {
	w := &Writer{buf: make([]byte, 0, firstBuffer)}
	w.Reset(dst)
	return w
}

// Reset makes w write to dst from offset 0 and forgets everything else: what
// was not flushed, its sticky error and its rate. It keeps the buffers.
func (w *Writer) Reset(dst io.Writer) {
	clear(w.queue)
	*w = Writer{dst: dst, buf: w.buf[:0], queue: w.queue[:0]}
	switch d := dst.(type) {
	case *net.TCPConn, *net.UnixConn:
		w.refs = refQueue
	case BuffersWriter:
		w.refs, w.vectors = refQueue, d
	case io.ByteWriter:
		// What can take single bytes (bytes.Buffer, bufio.Writer) is taken for
		// memory.
		w.refs = refDirect
	default:
		w.refs = refCopy
	}
	if w.refs == refQueue && w.queue == nil {
		w.queue = make(net.Buffers, 0, maxQueue+2)
	}
}

// PutByte puts one byte.
func (w *Writer) PutByte(v byte) { w.room(1)[0] = v }

// PutBE16 puts a big-endian 16-bit integer.
func (w *Writer) PutBE16(v uint16) { binary.BigEndian.PutUint16(w.room(2), v) }

// PutBE32 puts a big-endian 32-bit integer.
func (w *Writer) PutBE32(v uint32) { binary.BigEndian.PutUint32(w.room(4), v) }

// PutBE64 puts a big-endian 64-bit integer.
func (w *Writer) PutBE64(v uint64) { binary.BigEndian.PutUint64(w.room(8), v) }

// PutCountedString puts a string preceded by its length in one byte. A string
// longer than 255 bytes makes the Writer fail with [ErrTooLong].
func (w *Writer) PutCountedString(s string) {
	if len(s) > 255 {
		w.fail(fmt.Errorf("string of %d bytes: %w", len(s), ErrTooLong))
		return
	}
	w.PutByte(byte(len(s)))
	w.WriteString(s)
}

// Write puts a copy of p, or passes p on at once, in order, where it is large.
// Either way p is the caller's again when Write returns. The error is the
// sticky one.
func (w *Writer) Write(p []byte) (int, error) {
	if len(p) > writeBuffer-len(w.buf) && len(p) >= directWrite {
		w.direct(p)
	} else {
		w.copy(p)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// WriteString puts the bytes of s.
func (w *Writer) WriteString(s string) (int, error) {
	for n := 0; n < len(s); {
		if w.err != nil || w.space(1) != nil {
			return 0, w.err
		}
		m := copy(w.buf[len(w.buf):cap(w.buf)], s[n:])
		w.buf = w.buf[:len(w.buf)+m]
		n += m
	}
	return len(s), w.err
}

// WriteRef queues p itself: what Flush (or the Writer, when much is queued)
// sends is the content p has then. The memory must stay valid until Flush
// returns, and the stream must mean the same whether the old or the new content
// leaves; a page that the guest goes on writing qualifies when it is sent again
// later. A destination that cannot take vectored writes gets a copy or a plain
// Write.
func (w *Writer) WriteRef(p []byte) {
	switch {
	case w.err != nil || len(p) == 0:
	case w.refs == refCopy && len(p) < directWrite, w.refs == refQueue && len(p) <= smallRef:
		w.copy(p)
	case w.refs == refQueue:
		w.queueBuf()
		w.queue = append(w.queue, p)
		w.refLen += len(p)
		if len(w.queue) >= maxQueue || w.refLen >= maxQueueBytes {
			w.send()
		}
	default:
		w.direct(p)
	}
}

// Flush sends everything put so far, in one vectored write where the
// destination allows, and returns the sticky error.
func (w *Writer) Flush() error { return w.send() }

// Transferred returns the number of bytes put since NewWriter, flushed or not.
// Bytes put after an error do not count.
func (w *Writer) Transferred() int64 {
	return w.out + int64(len(w.buf)) + int64(w.refLen)
}

// Fail makes err the sticky error, unless there is one or err is nil.
func (w *Writer) Fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// Err returns the first error; nil does not say that anything has left yet.
func (w *Writer) Err() error { return w.err }

// room returns n (at most 8) bytes to fill.
func (w *Writer) room(n int) []byte {
	if w.err != nil || len(w.buf)+n > cap(w.buf) && w.space(n) != nil {
		return w.scratch[:n]
	}
	l := len(w.buf)
	w.buf = w.buf[:l+n]
	return w.buf[l : l+n : l+n]
}

// space makes room for n (at most 8) bytes in the buffer: it grows as long as it may, and
// is sent then.
func (w *Writer) space(n int) error {
	l := len(w.buf)
	switch {
	case l+n <= cap(w.buf):
		return nil
	case l+n > writeBuffer:
		return w.send()
	}
	// What is queued goes on referring to the old memory, in which it does not change.
	grown := make([]byte, l, larger(cap(w.buf), l+n, writeBuffer))
	copy(grown, w.buf)
	w.buf = grown
	return nil
}

func (w *Writer) copy(p []byte) {
	for w.err == nil && len(p) > 0 {
		if w.space(1) != nil {
			return
		}
		m := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf = w.buf[:len(w.buf)+m]
		p = p[m:]
	}
}

// direct sends what is queued and p after it, without copying p.
func (w *Writer) direct(p []byte) {
	if w.err != nil {
		return
	}
	if w.refs == refQueue {
		w.queueBuf()
		w.queue = append(w.queue, p)
		w.refLen += len(p)
		w.send()
		return
	}
	if w.send() == nil {
		n, err := w.dst.Write(p)
		w.wrote(int64(n), int64(len(p)), err)
	}
}

// queueBuf puts what was copied since the last reference into the queue.
func (w *Writer) queueBuf() {
	if len(w.buf) > w.queued {
		w.queue = append(w.queue, w.buf[w.queued:])
		w.queued = len(w.buf)
	}
}

// send gives everything that is queued to the destination.
func (w *Writer) send() error {
	if w.err != nil || len(w.buf) == 0 && w.refLen == 0 {
		return w.err
	}
	total := int64(len(w.buf)) + int64(w.refLen)
	var n int64
	var err error
	if len(w.queue) == 0 {
		var m int
		m, err = w.dst.Write(w.buf)
		n = int64(m)
	} else {
		w.queueBuf()
		w.iov = w.queue
		if w.vectors != nil {
			n, err = w.vectors.WriteBuffers(&w.iov)
		} else {
			n, err = w.iov.WriteTo(w.dst)
		}
		w.iov = nil
		clear(w.queue) // do not keep the guest's memory alive
		w.queue = w.queue[:0]
	}
	w.buf, w.queued, w.refLen = w.buf[:0], 0, 0
	w.wrote(n, total, err)
	return w.err
}

// wrote accounts for a write of which n of want bytes left.
func (w *Writer) wrote(n, want int64, err error) {
	w.out += n
	w.meter.add(n)
	if err == nil && n < want {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.fail(err)
	}
}

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = &Error{Op: "write", Offset: w.Transferred(), Err: err}
	}
}
