package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// check refuses a request that the server would refuse, or that has no form on the wire.
func (c *Client) check(off, n int64, change bool) error {
	switch {
	case off < 0 || n < 0 || off > c.info.Size || n > c.info.Size-off:
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrRange, n, off, c.info.Size)
	case (off|n)&(int64(c.info.MinBlock)-1) != 0:
		return fmt.Errorf("%w: %d bytes at %d, block size %d", ErrAlignment, n, off, c.info.MinBlock)
	case change && c.info.ReadOnly:
		return ErrReadOnly
	}
	return nil
}

const (
	maxZeroes = 1 << 30  // of one WRITE_ZEROES; the length is 32 bits
	maxData   = 32 << 20 // of one read or write, whatever the server announces (proto, "Block size constraints")
)

// most returns the longest request of a kind.
func (c *Client) most(cmd uint16) int64 {
	if cmd == cmdTrim || cmd == cmdWriteZeroes {
		return maxZeroes
	}
	return int64(min(c.info.MaxBlock, maxData) &^ (c.info.MinBlock - 1))
}

// ReadAt implements io.ReaderAt.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(int64(len(p)-done), c.most(cmdRead))
		part := p[done : done+int(n)]
		if err := c.do(request{cmd: cmdRead, off: uint64(off) + uint64(done), n: uint32(n)}, nil, part); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.write(p, off, 0)
}

func (c *Client) write(p []byte, off int64, flags uint16) (int, error) {
	if err := c.check(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(int64(len(p)-done), c.most(cmdWrite))
		part := p[done : done+int(n)]
		if err := c.do(request{flags: flags, cmd: cmdWrite, off: uint64(off) + uint64(done), n: uint32(n)}, part, nil); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// WriteFUA writes p and returns when that is stable. The error is
// errors.ErrUnsupported, with nothing written, if the server cannot promise
// that.
func (c *Client) WriteFUA(p []byte, off int64) error {
	if c.info.FUA {
		_, err := c.write(p, off, cmdFlagFUA)
		return err
	}
	if err := c.canFlush(); err != nil {
		return err
	}
	if _, err := c.write(p, off, 0); err != nil {
		return err
	}
	return c.Sync()
}

func (c *Client) canFlush() error {
	if !c.info.Flush {
		return fmt.Errorf("nbd: flush: %w", errors.ErrUnsupported)
	}
	return nil
}

// Sync makes stable everything that was answered before the call. The error
// is errors.ErrUnsupported if the server cannot promise that.
func (c *Client) Sync() error {
	if err := c.canFlush(); err != nil {
		return err
	}
	return c.do(request{cmd: cmdFlush}, nil, nil)
}

// Trim tells the server that the content of a range is not needed any more. It does
// nothing if the server has no use for that, nor for the ends of the range if they share a
// block of the server with other data.
func (c *Client) Trim(off, n int64) error {
	if m := int64(c.info.MinBlock) - 1; (off|n)&m != 0 && off >= 0 && n >= 0 && off <= c.info.Size && n <= c.info.Size-off {
		end := (off + n) &^ m
		off = min((off+m)&^m, end)
		n = end - off
	}
	if err := c.check(off, n, true); err != nil || !c.info.Trim {
		return err
	}
	return c.zero(cmdTrim, off, n)
}

// WriteZeroes zeroes a range; the server may give the storage back.
func (c *Client) WriteZeroes(off, n int64) error {
	if err := c.check(off, n, true); err != nil {
		return err
	}
	if c.info.WriteZeroes {
		return c.zero(cmdWriteZeroes, off, n)
	}
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if _, err := c.write(zeroes[:k], off, 0); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *Client) zero(cmd uint16, off, n int64) error {
	for n > 0 {
		k := min(n, maxZeroes)
		if err := c.do(request{cmd: cmd, off: uint64(off), n: uint32(k)}, nil, nil); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// StartWrite implements replication.Remote.
func (c *Client) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	if err := c.check(off, int64(len(p)), true); err != nil {
		done(err)
		return
	}
	if len(p) == 0 {
		done(nil) // some servers refuse a write of nothing
		return
	}
	a := ask{request: request{cmd: cmdWrite, off: uint64(off), n: uint32(len(p))}, p: p, late: !fua, done: done}
	if fua {
		if err := c.writeThrough(&a); err != nil {
			done(err)
			return
		}
	}
	most := int(c.most(cmdWrite))
	if len(p) <= most {
		c.begin(a)
		return
	}
	a.done = collect((len(p)+most-1)/most, done)
	for len(p) > 0 {
		k := min(len(p), most)
		a.n, a.p = uint32(k), p[:k]
		c.begin(a)
		a.off += uint64(k)
		p = p[k:]
	}
}

// StartZeroes implements replication.Remote.
func (c *Client) StartZeroes(off, n int64, fua bool, done func(error)) {
	if err := c.check(off, n, true); err != nil {
		done(err)
		return
	}
	if n == 0 {
		done(nil)
		return
	}
	a := ask{request: request{cmd: cmdWriteZeroes, off: uint64(off)}}
	most := int64(maxZeroes)
	if !c.info.WriteZeroes {
		a.cmd, most = cmdWrite, min(c.most(cmdWrite), int64(len(zeroes)))
	}
	if fua {
		if err := c.writeThrough(&a); err != nil {
			done(err)
			return
		}
	}
	a.done = collect(int((n+most-1)/most), done)
	for n > 0 {
		k := min(n, most)
		a.n = uint32(k)
		if a.cmd == cmdWrite {
			a.p = zeroes[:k]
		}
		c.begin(a)
		a.off += uint64(k)
		n -= k
	}
}

// StartFlush implements replication.Remote.
func (c *Client) StartFlush(done func(error)) {
	if err := c.canFlush(); err != nil {
		done(err)
		return
	}
	c.begin(ask{request: request{cmd: cmdFlush}, done: done})
}

// writeThrough has a write answered only when it is stable.
func (c *Client) writeThrough(a *ask) error {
	if c.info.FUA {
		a.flags = cmdFlagFUA
		return nil
	}
	a.fua = true
	return c.canFlush()
}

// collect returns a function that is called n times, and then calls done once, with an
// error if there was one.
func collect(n int, done func(error)) func(error) {
	if n == 1 {
		return done
	}
	var left atomic.Int64
	var failed atomic.Pointer[error]
	left.Store(int64(n))
	return func(err error) {
		if err != nil {
			failed.CompareAndSwap(nil, &err)
		}
		if left.Add(-1) == 0 {
			if e := failed.Load(); e != nil {
				err = *e
			}
			done(err)
		}
	}
}

// Progress implements replication.Remote: it handles answers, and returns nil
// when there has been at least one since the call, ctx's error, or why the
// connection has ended.
func (c *Client) Progress(ctx context.Context) error {
	c.mu.Lock()
	before := c.answered
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.dead:
		return c.Err()
	}
	defer func() { <-c.turn }()
	c.mu.Lock()
	err, some := c.err, c.answered != before
	c.mu.Unlock()
	for c.r.Buffered() >= replyLen && err == nil {
		err = c.readReply() // only the data of a read needs system calls here
		some = true
	}
	if err == nil && !some {
		c.mu.Lock()
		c.progress++
		me := c.progress
		c.mu.Unlock()
		stop := context.AfterFunc(ctx, func() { c.interrupt(me) })
		err = c.readReplyOr(ctx)
		stop()
		c.uninterrupted() // from now on the end of this ctx interrupts no other Progress
		if err != nil && err == ctx.Err() {
			return err
		}
	}
	if err != nil {
		c.fail(err)
		return c.Err()
	}
	return nil
}

// interrupt makes the call of Progress with that number return.
func (c *Client) interrupt(progress uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.progress == progress {
		c.interrupted = true
		c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// uninterrupted has the end of the present Progress's ctx interrupt nothing any more.
func (c *Client) uninterrupted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress++
	if c.interrupted {
		c.interrupted = false
		c.conn.SetReadDeadline(time.Time{})
	}
}

// readReplyOr does what readReply does, but returns ctx's error, with nothing read, if ctx
// ends before there is a reply. Once it is there, only silence ends the wait for the rest
// of it.
func (c *Client) readReplyOr(ctx context.Context) error {
	for c.r.Buffered() < replyLen {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := c.awaitReply(); err != nil && (!isTimeout(err) || ctx.Err() == nil) {
			return err
		}
	}
	c.uninterrupted() // what has begun to come is read to its end, which ctx must not cut off
	return c.readReply()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
