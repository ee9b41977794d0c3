package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// heldConn is a connection whose writes go through a function.
type heldConn struct {
	net.Conn
	write func(p []byte) error
	moved int       // how often the deadline has been set
	until time.Time // the deadline
}

func (c *heldConn) SetWriteDeadline(t time.Time) error { c.moved++; c.until = t; return nil }

func (c *heldConn) Write(p []byte) (int, error) {
	if err := c.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// newSender returns a sender, whose client need not be told of an error.
func newSender(c *heldConn) *sender {
	o := new(sender)
	o.init(c, time.Minute)
	return o
}

// awaitLarge waits until so many large messages wait for whoever sends.
func (o *sender) awaitLarge(n int) {
	for {
		o.mu.Lock()
		k := len(o.large)
		o.mu.Unlock()
		if k == n {
			return
		}
		runtime.Gosched()
	}
}

func TestALargeMessageLeavesHoweverManySmallOnesCome(t *testing.T) {
	data := bytes.Repeat([]byte{7}, copied+1)
	var c heldConn
	o := newSender(&c)
	var wg sync.WaitGroup
	writes, at := 0, 0
	c.write = func(p []byte) error {
		writes++
		if writes == 1 {
			wg.Go(func() {
				if err := o.send([]byte("head"), data); err != nil {
					t.Error(err)
				}
			})
			o.awaitLarge(1)
		}
		if bytes.Equal(p, data) {
			at = writes
		}
		if at == 0 && writes < 1000 {
			return o.send([]byte("small"), nil) // another one is there each time
		}
		return nil
	}
	if err := o.send([]byte("small"), nil); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if at == 0 || at > 4 { // two small ones and a head
		t.Errorf("the large message left with write %d of %d", at, writes)
	}
}

func TestLargeMessagesThatWaitLeaveTogetherInOrder(t *testing.T) {
	const n = 5
	var c heldConn
	o := newSender(&c)
	o.whole, o.timeout = true, 0 // each system call has all parts, and a deadline of its own
	var got []byte
	var wg sync.WaitGroup
	c.write = func(p []byte) error {
		for i := byte(1); len(got) == 0 && i <= n; i++ {
			wg.Go(func() {
				if err := o.send([]byte{i}, bytes.Repeat([]byte{i}, copied+1)); err != nil {
					t.Error(err)
				}
			})
			o.awaitLarge(int(i))
		}
		got = append(got, p...)
		return nil
	}
	if err := o.send([]byte{0}, make([]byte, copied+1)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if c.moved != 2 {
		t.Errorf("%d messages left with %d system calls, want 2", 1+n, c.moved)
	}
	var want []byte
	for i := range byte(1 + n) {
		want = append(want, bytes.Repeat([]byte{i}, copied+2)...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, or another order", len(got), len(want))
	}
}

func TestWhoWaitsForALargeMessageLearnsOfTheEnd(t *testing.T) {
	var c heldConn
	o := newSender(&c)
	var wg sync.WaitGroup
	c.write = func([]byte) error {
		for i := range 3 {
			wg.Go(func() {
				if err := o.send(nil, make([]byte, copied+1)); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("error %v", err)
				}
			})
			o.awaitLarge(i + 1)
		}
		return io.ErrClosedPipe
	}
	if err := o.send(nil, make([]byte, copied+1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
	wg.Wait()
	if err := o.send(nil, make([]byte, copied+1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("later: error %v", err)
	}
}

func TestSendingAllocatesNothing(t *testing.T) {
	c := heldConn{write: func([]byte) error { return nil }}
	o := newSender(&c)
	head, data := make([]byte, requestLen), make([]byte, copied+1)
	o.send(head, data)
	if n := testing.AllocsPerRun(100, func() { o.send(head, data); o.send(head, data[:1]) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A server may say that it sets no bound, and still refuse what is larger than
// servers take.
func TestNoRequestHasMoreDataThanServersTake(t *testing.T) {
	c := Client{info: Info{MinBlock: 4096, MaxBlock: 1<<32 - 1}}
	if n := c.most(cmdWrite); n != 32<<20 {
		t.Errorf("writes of %d bytes, want 32 MiB", n)
	}
	c.info.MaxBlock = 1<<20 + 512
	if n := c.most(cmdRead); n != 1<<20 {
		t.Errorf("reads of %d bytes, want 1 MiB", n)
	}
}

func TestEachSystemCallHasItsTimeThoughTheDeadlineIsMovedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c heldConn
		o := newSender(&c)
		c.write = func([]byte) error {
			if left := time.Until(c.until); left < o.timeout || left > o.timeout+o.timeout/8 {
				t.Errorf("a system call has %v, of %v", left, o.timeout)
			}
			return nil
		}
		for range 1000 {
			must(t, o.send([]byte("small"), nil))
			time.Sleep(time.Millisecond)
		}
		if c.moved != 1 {
			t.Errorf("in a second the deadline was moved %d times, not once", c.moved)
		}
		for range 100 {
			must(t, o.send([]byte("small"), nil))
			time.Sleep(3 * time.Second)
		}
		o.farewell([]byte("farewell"))
	})
}
