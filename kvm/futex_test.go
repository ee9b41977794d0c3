//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// watches returns how many of n waits in turn begin with watching; raised says whether what is
// watched for comes in time.
func watches(l *lookout, n int, raised bool) (list []int) {
	for i := range n {
		if while := l.length(time.Second); while > 0 {
			list = append(list, i)
			l.learn(while, raised)
		} else {
			l.learn(while, false)
		}
	}
	return list
}

func TestAThreadThatWatchesInVainSoonWatchesOnlyNowAndThen(t *testing.T) {
	var l lookout
	if got, want := watches(&l, 45, false), []int{0, 1, 2, 3, 4, 5, 6, 7, 23, 39}; !slices.Equal(got, want) {
		t.Errorf("it watched at %v, want %v", got, want)
	}
	if got, want := watches(&l, 14, true), []int{10, 11, 12, 13}; !slices.Equal(got, want) {
		t.Errorf("with success it watched at %v, want %v", got, want)
	}
	if got, want := watches(&l, 20, false), []int{0, 1, 2, 3, 4, 5, 6, 7}; !slices.Equal(got, want) {
		t.Errorf("after a success it watched in vain at %v, want %v", got, want)
	}
}

func TestAThreadThatNowAndThenWatchesWithSuccessWatchesEachTime(t *testing.T) {
	var l lookout
	for i := range 100 {
		while := l.length(time.Second)
		if while == 0 {
			t.Fatalf("it did not watch at %d", i)
		}
		l.learn(while, i%inVain == inVain-1)
	}
}

func TestAWaitOfAThreadThatIsNotToWatchChangesNothing(t *testing.T) {
	var l lookout
	watches(&l, 9, false)
	was := l
	if while := l.length(0); while != 0 {
		t.Errorf("it watched for %v", while)
	}
	l.learn(0, false)
	if l != was {
		t.Errorf("it became %+v, was %+v", l, was)
	}
}

func TestPausesThatWatchInVainWatchLess(t *testing.T) {
	vm, _ := shooting(t, 1)
	ctx := t.Context()
	learned := func() bool {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		vm.watching = 1 // nothing comes so soon
		return vm.pausing.vain == inVain
	}
	for end := time.Now().Add(time.Minute); !learned(); {
		if time.Now().After(end) {
			t.Fatalf("each watches in vain: %+v", vm.pausing)
		}
		if err := errors.Join(vm.Resume(ctx), wait.For(ctx, time.Millisecond), vm.Pause(ctx)); err != nil {
			t.Fatal(err)
		}
	}
}
