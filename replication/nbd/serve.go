package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// session is a connection after negotiation. Its requests are served by workers that take
// turns: one reads a request, passes the turn on, serves the request and answers it. So a
// request stays in one goroutine, and a slow one does not keep others waiting. Where the
// disk is quick, a worker keeps the turn, and serves what comes meanwhile before it answers,
// see [session.serveTogether].
type session struct {
	srv        *Server
	e          *Export
	link       *link
	conn       net.Conn // link's connection, or TLS over it
	size       uint64
	structured bool // the client takes structured replies
	contexts   []selectedContext

	turn turn // held by the worker that reads; guards r, slow and end
	kept kept // the turn of a worker that serves
	r    *reader
	slow patientReader // what r reads from
	end  error         // why no more requests are read; io.EOF: the client disconnected

	mu      sync.Mutex // guards what follows
	waiting int        // workers that wait for their turn
	workers int
	bytes   int64 // data of requests under way
	room    *sync.Cond
	pace    time.Duration // how long the disk takes for a request, of late
	wg      sync.WaitGroup

	out sender
}

// turn is a lock that is held while a connection is read, which may take long.
// It is a channel with room for one, and not a sync.Mutex, so that those who
// wait for it count as durably blocked in a bubble of package testing/synctest.
type turn chan struct{}

func (t turn) take() { t <- struct{}{} }
func (t turn) pass() { <-t }

func serveRequests(e *Export, n *negotiation) error { return newSession(e, n).run() }

func newSession(e *Export, n *negotiation) *session {
	s := &session{
		srv: n.srv, e: e, link: n.raw, conn: n.conn, r: n.r, turn: make(turn, 1),
		size: uint64(e.cfg.Disk.Size()), structured: n.structured,
	}
	if n.metaExport == e {
		s.contexts = n.contexts
	}
	s.room = sync.NewCond(&s.mu)
	s.slow = patientReader{Conn: n.conn, timeout: n.srv.cfg.Timeout}
	s.r.src.conn = &s.slow
	s.out.init(n.conn, n.srv.cfg.Timeout)
	s.workers, s.waiting = 1, 1
	s.pace = together // until it is known, requests are served one by one
	return s
}

// run serves requests until the connection ends.
func (s *session) run() error {
	s.kept.init(func() {
		s.out.push(func(error) { s.link.Close() })
		s.pass()
	})
	defer s.kept.late.Stop()
	s.wg.Add(1)
	s.work()
	s.wg.Wait()
	s.out.wait() // for what the end of a kept turn has sent
	if s.end != io.EOF {
		return s.end
	}
	return nil
}

// work serves requests until there are no more.
func (s *session) work() {
	defer s.wg.Done()
	var t taken
	for keeps := false; ; {
		if !keeps {
			s.turn.take()
			s.mu.Lock()
			s.waiting--
			s.mu.Unlock()
		}
		if !s.take(&t) {
			s.turn.pass()
			return
		}
		var err error
		if keeps = s.quick(&t); keeps {
			keeps, err = s.serveTogether(&t)
		} else {
			s.pass()
			err = s.serve(&t, true)
		}
		if err != nil {
			s.link.Close() // so that the worker that reads ends
		}
		if !keeps {
			s.mu.Lock()
			s.waiting++
			s.mu.Unlock()
		}
	}
}

// pass passes the turn on to another worker, which it makes if there is none. The caller
// has the turn.
func (s *session) pass() {
	s.mu.Lock()
	if s.waiting == 0 && s.workers < s.srv.cfg.MaxRequests {
		s.workers++
		s.waiting++
		s.wg.Add(1)
		go s.work()
	}
	s.mu.Unlock()
	s.turn.pass()
}

// taken is a request that a worker has read, with what next returns.
type taken struct {
	request
	data    []byte
	refused error
}

// take reads a request, and returns false if no more are to be read. The caller has the
// turn.
func (s *session) take(t *taken) bool {
	if s.end != nil {
		return false
	}
	if t.data, t.refused, s.end = s.next(&t.request); s.end != nil {
		s.srv.memory.put(t.data)
		return false
	}
	s.e.requests.Add(1)
	return true
}

// serve serves a request. Without now, a small answer is left to the sender. The error is
// the connection's.
func (s *session) serve(t *taken, now bool) error {
	data, err := t.data, t.refused
	begin := time.Now()
	if err == nil {
		data, err = s.do(&t.request, t.data)
	}
	took := time.Since(begin)
	failed := s.answer(&t.request, data, err, now)
	s.srv.memory.put(t.data)
	s.mu.Lock()
	s.bytes -= s.payload(&t.request)
	s.keepPace(took)
	s.mu.Unlock()
	s.room.Signal()
	return failed
}

// answer sends the answer to a request: data for a read or block status, or err. Without
// now, a small answer may wait for the next. The error is the connection's.
func (s *session) answer(req *request, data []byte, err error, now bool) error {
	var space [chunkLen + 8]byte // enough for all heads but that of an error with a text
	head := space[:0]
	switch {
	case err != nil && s.structured:
		return s.out.put(now, appendError(head, req.handle, err), nil)
	case err == nil && req.cmd == cmdBlockStatus:
		return s.out.put(now, head, data)
	case err != nil || req.cmd != cmdRead:
		return s.out.put(now, appendReply(head, toErrno(err), req.handle), nil)
	case !s.structured:
		return s.out.put(now, appendReply(head, 0, req.handle), data)
	case len(data) == 0:
		c := chunk{chunkDone, chunkNone, req.handle, 0}
		return s.out.put(now, c.append(head), nil)
	}
	c := chunk{chunkDone, chunkData, req.handle, 8 + uint32(len(data))}
	return s.out.put(now, binary.BigEndian.AppendUint64(c.append(head), req.off), data)
}

// payload returns how many bytes of the bounds a request takes.
func (s *session) payload(req *request) int64 {
	switch req.cmd {
	case cmdRead, cmdWrite:
		return int64(req.n)
	case cmdBlockStatus:
		if req.n > 0 {
			return int64(s.statusLen(req))
		}
	}
	return 0
}

// next reads a request, with its data if it is a write, into a buffer of the
// server's memory. refused is the answer to a request that is not to be
// served.
func (s *session) next(req *request) (data []byte, refused, end error) {
	head, err := s.r.Peek(requestLen)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, err
	}
	if err := req.parse(head); err != nil {
		return nil, nil, err
	}
	s.r.Discard(requestLen)
	if req.cmd == cmdDisc {
		return nil, nil, io.EOF
	}
	refused = s.check(req)
	if refused != nil {
		var err error
		if req.cmd == cmdWrite {
			err = s.arrive(int64(req.n), func() error {
				_, err := io.CopyN(io.Discard, s.r, int64(req.n))
				return err
			})
		}
		req.n = 0
		return nil, refused, err
	}
	n := s.payload(req)
	s.mu.Lock()
	for s.bytes > 0 && s.bytes+n > s.srv.cfg.MaxBytes {
		s.room.Wait()
	}
	s.bytes += n
	s.mu.Unlock()
	data, ok := s.srv.memory.get(int(n), s.link.gone)
	if !ok {
		return nil, nil, net.ErrClosed
	}
	if req.cmd == cmdWrite {
		if s.r.Buffered() >= len(data) {
			return data, nil, s.r.data(data)
		}
		return data, nil, s.arrive(int64(len(data)), func() error { return s.r.data(data) })
	}
	return data, nil, nil
}

// arrive bounds the time in which read reads each piece of the n bytes of a request's data,
// since memory is taken for them already.
func (s *session) arrive(n int64, read func() error) error {
	if int64(s.r.Buffered()) >= n {
		return read()
	}
	if err := s.slow.begin(); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	return s.slow.end()
}

// check refuses a request that is not to be served (proto, "Request types"
// and "Error values").
func (s *session) check(req *request) error {
	known := uint16(cmdFlagFUA) // allowed also where it has no effect
	switch req.cmd {
	case cmdFlush, cmdWrite, cmdTrim:
	case cmdRead:
		if s.structured {
			known |= cmdFlagDF
		}
	case cmdWriteZeroes:
		known |= cmdFlagNoHole
	case cmdBlockStatus:
		if len(s.contexts) == 0 || req.n == 0 {
			return syscall.EINVAL
		}
		known |= cmdFlagReqOne
	default:
		return syscall.EINVAL
	}
	if req.flags&^known != 0 {
		return syscall.EINVAL
	}
	if req.cmd == cmdFlush {
		if req.off != 0 || req.n != 0 {
			return syscall.EINVAL
		}
		return nil
	}
	if req.cmd != cmdRead && req.cmd != cmdBlockStatus && s.e.cfg.ReadOnly {
		return syscall.EPERM
	}
	if (req.cmd == cmdRead || req.cmd == cmdWrite) && req.n > s.srv.cfg.MaxRequest {
		return syscall.EINVAL
	}
	if req.off > s.size || uint64(req.n) > s.size-req.off {
		if req.cmd == cmdWrite || req.cmd == cmdWriteZeroes {
			return syscall.ENOSPC
		}
		return syscall.EINVAL
	}
	return nil
}

// do serves a request.
func (s *session) do(req *request, buf []byte) ([]byte, error) {
	disk, off, n := s.e.cfg.Disk, int64(req.off), int64(req.n)
	switch req.cmd {
	case cmdRead:
		if k, err := s.e.read(buf, off, s.link); k < len(buf) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		return buf, nil
	case cmdFlush:
		return nil, disk.Sync()
	case cmdBlockStatus:
		return s.status(req, buf[:0])
	}
	if err := s.e.beginChange(); err != nil {
		return nil, err
	}
	defer s.e.endChange()
	fua := req.flags&cmdFlagFUA != 0
	var err error
	switch req.cmd {
	case cmdWrite:
		if fua {
			return nil, s.e.writeFUA(buf, off)
		}
		_, err = disk.WriteAt(buf, off)
		return nil, err
	case cmdWriteZeroes:
		err = s.e.writeZeroes(off, n, req.flags&cmdFlagNoHole == 0, s.link.gone)
	case cmdTrim:
		if t, ok := disk.(trimmer); ok {
			if err = t.Trim(off, n); cannot(err) {
				err = s.e.writeZeroes(off, n, false, s.link.gone) // by whichever way the disk can
			}
		}
	default:
		return nil, fmt.Errorf("internal error: command %d was let through", req.cmd)
	}
	if err == nil && fua {
		err = disk.Sync()
	}
	return nil, err
}
