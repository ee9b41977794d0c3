package colo

import (
	"net"
	"testing"
)

// An order may end the session before its Run has begun: what the peer says is read all the same by
// whoever is allowed to afterwards.
func TestALinkThatWasInterruptedBeforeItIsWatchedIsRead(t *testing.T) {
	here, there := net.Pipe()
	l := NewLink(here, 0)
	l.interrupt()
	l.watch()
	defer l.join()
	l.allow()
	go there.Write([]byte{7})
	if b := l.R.Byte(); b != 7 || l.R.Err() != nil {
		t.Errorf("%d, %v", b, l.R.Err())
	}
}

// Whoever gives an order does so on another goroutine than Run's.
func TestALinkIsInterruptedWhileItBeginsToBeWatched(t *testing.T) {
	for range 100 {
		here, there := net.Pipe()
		l := NewLink(here, 0)
		done := make(chan struct{})
		go func() { l.interrupt(); close(done) }()
		l.watch()
		<-done
		l.allow()
		go there.Write([]byte{7})
		if b := l.R.Byte(); b != 7 || l.R.Err() != nil {
			t.Errorf("%d, %v", b, l.R.Err())
		}
		l.join()
	}
}
