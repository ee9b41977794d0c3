package threads

import (
	"runtime"
	"sync"
	"testing"
)

func TestGuestsThatBeginAndEndAtOnceLoseNoPlace(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	var begun, ended sync.WaitGroup
	end := make(chan struct{})
	for range 20 {
		begun.Add(1)
		ended.Go(func() {
			undo := More(2)
			begun.Done()
			<-end
			undo()
		})
	}
	begun.Wait()
	if n := runtime.GOMAXPROCS(0); n != before+40 {
		t.Errorf("%d places beside 40 vCPUs, of %d", n, before)
	}
	close(end)
	ended.Wait()
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d places after that, %d before", n, before)
	}
}
