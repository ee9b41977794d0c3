package nbd

import (
	"sync/atomic"
	"time"
)

// Which requests a worker of a session serves together.

const (
	// together is for how long, at most, a request whose answer could be sent waits for
	// others that have come meanwhile.
	together = 64 * time.Microsecond
	// mostTogether is how many requests one worker serves together at most.
	mostTogether = 16
	// quick is the pace of a disk whose requests are served together.
	quick = together / 4
	// unhurried is the slowest pace that a measurement counts as: so a disk that
	// hesitated once is soon a quick one again.
	unhurried = 4 * together
	// keepTurn is how long a worker that serves requests keeps the turn. It ends where a
	// quick disk has become a slow one, or the client takes no answers.
	keepTurn = time.Millisecond
)

// kept is the turn of a worker that goes on holding it while it serves requests: a client
// that waits for these answers sends nothing before, so another worker would be woken to
// find that nothing has come.
type kept struct {
	is   atomic.Int32
	late *time.Timer // passes the turn on, if it is kept
}

// The states of a kept turn.
const (
	notKept int32 = iota
	isKept
	cameBetween // the timer, while its worker read: it has to come again
)

// init sets pass as the function that is called when a turn has been kept for
// too long.
func (k *kept) init(pass func()) {
	k.late = time.AfterFunc(time.Hour, func() {
		for !k.end() {
			if k.is.CompareAndSwap(notKept, cameBetween) || k.is.Load() == cameBetween {
				return
			}
		}
		pass()
	})
}

// begin keeps the turn while its worker does what may take long. A worker that has lost it
// by then does not begin: another worker keeps the turn.
func (k *kept) begin(has bool) {
	if has && k.is.Swap(isKept) == cameBetween {
		k.late.Reset(keepTurn)
	}
}

// end reports whether a turn was kept until now. Then the caller has it.
func (k *kept) end() bool { return k.is.CompareAndSwap(isKept, notKept) }

// quick reports whether a request is likely to be served at once.
func (s *session) quick(t *taken) bool {
	if t.refused != nil || !t.short() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pace <= quick
}

// serveTogether serves a request, and those that have come by then, and sends the answers
// with one system call. So a client is not woken by each answer, to send one request that
// wakes a worker. The caller has the turn. It reports whether it still has it: if this
// lasts, the turn is passed on, and what is answered is sent.
func (s *session) serveTogether(t *taken) (keeps bool, err error) {
	begin := time.Now()
	s.kept.late.Reset(keepTurn)
	for n := 1; ; n++ {
		s.kept.begin(true)
		err = s.serve(t, false)
		keeps = s.kept.end()
		if !keeps || err != nil || n == mostTogether || time.Since(begin) >= together || !s.another(t) {
			break
		}
	}
	if err != nil {
		return keeps, err
	}
	s.kept.begin(keeps)
	err = s.out.flush()
	return keeps && s.kept.end(), err
}

// keepPace accounts for a request that took so long. The caller holds mu.
func (s *session) keepPace(took time.Duration) {
	s.pace += (min(took, unhurried) - s.pace) / 4
}

// short reports whether serving the request is no more than to copy a little data, on a
// quick disk.
func (r *request) short() bool {
	return (r.cmd == cmdRead || r.cmd == cmdWrite) && r.flags&cmdFlagFUA == 0 && r.n <= copied
}

// another reads one more request into t, if that and serving it need no waiting: if it is
// short, all of it has come, and there is room for it. The caller has the turn.
func (s *session) another(t *taken) bool {
	n, whole := s.following(t)
	if !whole && s.r.more() {
		n, whole = s.following(t)
	}
	if !whole {
		return false
	}
	s.mu.Lock()
	fits := s.bytes+int64(n) <= s.srv.cfg.MaxBytes
	if fits {
		s.bytes += int64(n)
	}
	s.mu.Unlock()
	if !fits {
		return false
	}
	if t.data, fits = s.srv.memory.try(n); !fits {
		s.mu.Lock()
		s.bytes -= int64(n)
		s.mu.Unlock()
		return false
	}
	s.r.Discard(requestLen)
	if t.cmd == cmdWrite {
		s.r.data(t.data) // from the buffer, which has it
	}
	return true
}

// following parses the request that is in the buffer, and reports whether all of it is
// there, it is short, and it is to be served; how much data it has, or asks for, too.
func (s *session) following(t *taken) (n int, whole bool) {
	if s.r.Buffered() < requestLen {
		return 0, false
	}
	head, err := s.r.Peek(requestLen)
	if err != nil || t.parse(head) != nil || !t.short() || s.check(&t.request) != nil {
		return 0, false // next looks at it again
	}
	n = int(t.n)
	return n, t.cmd == cmdRead || s.r.Buffered() >= requestLen+n
}
