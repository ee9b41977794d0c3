package nbd

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
)

// postSender returns a sender whose writes wait for a word each, and where they and its
// errors go.
func postSender() (o *sender, next chan error, wrote *[][]byte, lost *[]error) {
	next, wrote, lost = make(chan error), new([][]byte), new([]error)
	o = newSender(&heldConn{write: func(p []byte) error {
		err := <-next
		*wrote = append(*wrote, bytes.Clone(p))
		return err
	}})
	o.lost = func(err error) { *lost = append(*lost, err) }
	return o, next, wrote, lost
}

func TestPostedMessagesLeaveTogetherAndWithoutTheirCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, next, wrote, lost := postSender()
		o.post([]byte("a"), []byte("A"))
		o.push(o.lost)
		synctest.Wait() // it is being sent, and post has returned
		o.post([]byte("b"), []byte("B"))
		o.push(o.lost)
		o.post([]byte("c"), nil)
		if err := o.send([]byte("d"), nil); err != nil {
			t.Error(err)
		}
		next <- nil
		next <- nil
		synctest.Wait()
		if got := string(bytes.Join(*wrote, []byte("|"))); got != "aA|bBcd" {
			t.Errorf("written: %q", got)
		}
		o.wait()
		if *lost != nil {
			t.Errorf("lost: %v", *lost)
		}
	})
}

func TestPostWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, next, _, _ := postSender()
		posted := 0
		go func() {
			for range 4 * maxPending / copied {
				o.post(nil, make([]byte, copied))
				o.push(o.lost)
				posted++
			}
		}()
		synctest.Wait()
		// One batch is being sent, and the next one waits.
		if held := posted * copied; held < maxPending || held > 2*(maxPending+copied) {
			t.Errorf("%d bytes are held, of at most twice %d", held, maxPending)
		}
		close(next)
		synctest.Wait()
		if posted != 4*maxPending/copied {
			t.Errorf("%d were posted", posted)
		}
		o.wait()
	})
}

func TestAnErrorOfPostedMessagesIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, next, _, lost := postSender()
		broken := errors.New("broken")
		for range 3 {
			o.post([]byte("a"), nil)
			o.push(o.lost)
		}
		next <- broken
		synctest.Wait()
		o.post([]byte("late"), nil)
		o.push(o.lost)
		synctest.Wait()
		if len(*lost) != 1 || (*lost)[0] != broken {
			t.Errorf("lost: %v", *lost)
		}
		o.wait()
	})
}

func TestPostAllocatesNothing(t *testing.T) {
	c := &heldConn{write: func([]byte) error { return nil }}
	o := newSender(c)
	o.lost = func(error) {}
	head, data := make([]byte, requestLen), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { o.post(head, data); o.push(o.lost); o.wait() }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}
