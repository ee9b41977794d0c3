package colo

import (
	"os"
	"sync"
	"time"
)

// inlet reads a primary's connection at all times, so that the end of the link,
// and a word out of turn, are known while the primary waits or sends. What a
// secondary says is a few bytes; more than inletBytes of them wait in the
// connection.
type inlet struct {
	arrived chan struct{} // capacity one: signalled when a field below has changed
	room    chan struct{} // capacity one: signalled when bytes were taken
	done    chan struct{} // closed when the goroutine has ended
	timer   *time.Timer   // of read; belongs to the goroutine in Run

	mu  sync.Mutex
	buf []byte
	err error // why no more bytes will come
}

const inletBytes = 4 << 10

// watch starts a goroutine that reads ahead. It ends when the connection is closed, and
// join waits for it: so the Close of a connection must end a Read. If an order has
// interrupted the link before, watch does nothing about that: the next read of the link
// returns the interruption.
func (l *Link) watch() {
	in := &inlet{arrived: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{})}
	t := l.conn
	t.mu.Lock()
	t.inlet = in
	if t.stopped && t.deadlines != nil {
		t.deadlines.SetReadDeadline(time.Time{})
	}
	t.mu.Unlock()
	go in.run(t)
}

// join closes the connection and waits for what watch began.
func (l *Link) join() {
	l.Close()
	if in := l.conn.inlet; in != nil {
		in.took()
		<-in.done
	}
}

// unread reports whether the peer has said something that was not read yet, or
// the connection has ended.
func (l *Link) unread() bool { return l.R.Buffered() > 0 || l.conn.inlet.ready() }

func (in *inlet) run(t *timedConn) {
	defer close(in.done)
	p := make([]byte, inletBytes)
	for {
		n, err := t.conn.Read(p)
		in.mu.Lock()
		in.buf = append(in.buf, p[:n]...)
		in.err = err
		have := len(in.buf)
		in.mu.Unlock()
		notify(in.arrived)
		for err == nil && have >= inletBytes {
			<-in.room
			in.mu.Lock()
			have = len(in.buf)
			in.mu.Unlock()
			if t.closed.Load() {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// took tells the reading goroutine that there may be room again.
func (in *inlet) took() { notify(in.room) }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ready reports whether read would return at once.
func (in *inlet) ready() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.buf) > 0 || in.err != nil
}

// take moves the bytes that have arrived into p, or returns why no more will come.
func (in *inlet) take(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.buf) == 0 {
		return 0, in.err
	}
	n := copy(p, in.buf)
	in.buf = append(in.buf[:0], in.buf[n:]...)
	in.took()
	return n, nil
}

// read waits for bytes as long as t allows.
func (in *inlet) read(p []byte, t *timedConn) (int, error) {
	at, d := t.deadline()
	var due <-chan time.Time
	if !at.IsZero() {
		if in.timer == nil {
			in.timer = time.NewTimer(time.Until(at))
		} else {
			in.timer.Reset(time.Until(at))
		}
		defer in.timer.Stop()
		due = in.timer.C
	}
	for {
		if n, err := in.take(p); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if t.interrupted() {
			return 0, errInterrupted
		}
		select {
		case <-in.arrived:
		case <-t.stop():
		case <-due:
			if err := t.late(d, os.ErrDeadlineExceeded); !t.again(err) || !t.lives() {
				return 0, err
			}
			at, _ = t.deadline()
			in.timer.Reset(time.Until(at))
		}
	}
}
