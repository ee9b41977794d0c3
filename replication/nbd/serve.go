package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// session is a connection after negotiation. Its requests are served by
// workers that take turns: one reads a request, hands the turn on, serves
// what it has read and answers it. So a request never changes goroutines, and
// a slow one does not keep others waiting.
type session struct {
	srv  *Server
	e    *Export
	conn net.Conn
	size uint64

	turn sync.Mutex // held by the worker that reads; guards r, end and idle
	r    *bufio.Reader
	end  error // why nobody reads any more; io.EOF: the client disconnected

	mu      sync.Mutex // guards what follows
	waiting int        // workers that wait for their turn
	workers int
	bytes   int64 // data of requests under way
	room    *sync.Cond
	wg      sync.WaitGroup

	out sender
}

func serveRequests(srv *Server, e *Export, conn net.Conn, r *bufio.Reader) error {
	s := &session{srv: srv, e: e, conn: conn, size: uint64(e.cfg.Disk.Size()), r: r}
	s.room = sync.NewCond(&s.mu)
	s.out.init(conn, srv.cfg.Timeout)
	s.workers, s.waiting = 1, 1
	s.wg.Add(1)
	s.work()
	s.wg.Wait()
	if s.end != io.EOF {
		return s.end
	}
	return nil
}

// work serves requests until there are no more.
func (s *session) work() {
	defer s.wg.Done()
	var req request
	var buf []byte
	for {
		s.turn.Lock()
		more := s.end == nil
		var refused error
		if more {
			buf, refused, s.end = s.next(&req, buf)
			more = s.end == nil
		}
		if more {
			s.mu.Lock()
			s.waiting--
			if s.waiting == 0 && s.workers < s.srv.cfg.MaxRequests {
				s.workers++
				s.waiting++
				s.wg.Add(1)
				go s.work()
			}
			s.mu.Unlock()
		}
		s.turn.Unlock()
		if !more {
			return
		}
		data, err := buf, refused
		if err == nil {
			data, err = s.do(&req, buf)
		}
		if req.cmd != cmdRead || err != nil {
			data = nil
		}
		var head [replyLen]byte
		failed := s.out.send(appendReply(head[:0], toErrno(err), req.handle), data)
		s.mu.Lock()
		s.bytes -= payload(&req)
		s.waiting++
		s.mu.Unlock()
		s.room.Signal()
		if failed != nil {
			s.conn.Close() // the reader learns of it
		}
		if cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

// payload is how much of the bound of bytes a request takes.
func payload(req *request) int64 {
	if req.cmd == cmdRead || req.cmd == cmdWrite {
		return int64(req.n)
	}
	return 0
}

// next reads a request, with its data if it is a write, into buf or a larger
// one. refused is the answer to a request that is not to be served.
func (s *session) next(req *request, buf []byte) (data []byte, refused, end error) {
	head, err := s.r.Peek(requestLen)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return buf, nil, err
	}
	if err := req.parse(head); err != nil {
		return buf, nil, err
	}
	s.r.Discard(requestLen)
	if req.cmd == cmdDisc {
		return buf, nil, io.EOF
	}
	refused = s.check(req)
	if refused != nil {
		if req.cmd == cmdWrite {
			if _, err := io.CopyN(io.Discard, s.r, int64(req.n)); err != nil {
				return buf, nil, err
			}
		}
		req.n = 0
		return buf, refused, nil
	}
	n := payload(req)
	s.mu.Lock()
	for s.bytes > 0 && s.bytes+n > s.srv.cfg.MaxBytes {
		s.room.Wait()
	}
	s.bytes += n
	s.mu.Unlock()
	if int64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if req.cmd == cmdWrite {
		if err := readFull(s.r, buf); err != nil {
			return buf, nil, err
		}
	}
	return buf, nil, nil
}

// check refuses a request that is not to be served (proto, "Request types"
// and "Error values").
func (s *session) check(req *request) error {
	known := uint16(cmdFlagFUA) // also where it means nothing
	switch req.cmd {
	case cmdRead, cmdFlush, cmdWrite, cmdTrim:
	case cmdWriteZeroes:
		known |= cmdFlagNoHole
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
	if req.cmd != cmdRead && s.e.cfg.ReadOnly {
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
		if k, err := disk.ReadAt(buf, off); k < len(buf) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		return buf, nil
	case cmdFlush:
		return nil, disk.Sync()
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
		err = s.e.writeZeroes(off, n, req.flags&cmdFlagNoHole == 0)
	case cmdTrim:
		if t, ok := disk.(trimmer); ok {
			err = t.Trim(off, n)
		}
	default:
		return nil, fmt.Errorf("internal error: command %d was let through", req.cmd)
	}
	if err == nil && fua {
		err = disk.Sync()
	}
	return nil, err
}
