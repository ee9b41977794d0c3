package trial

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAMachineThatStoodStillIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var still atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(still.Load())) }
		end := watchStalls(now)
		time.Sleep(time.Minute)
		if gap := end(); gap != stallTick {
			t.Errorf("%v in which nobody ran, and everybody did", gap)
		}
		end = watchStalls(now)
		time.Sleep(time.Second + stallTick/2)
		still.Store(int64(7 * time.Second))
		time.Sleep(time.Second)
		if gap := end(); gap != 7*time.Second+stallTick {
			t.Errorf("%v in which nobody ran, and it was 7 s", gap)
		}
		end = watchStalls(now)
		still.Add(int64(time.Minute))
		if gap := end(); gap != time.Minute {
			t.Errorf("%v, and it was a minute at the end", gap)
		}
	})
}

func TestARunThatHasFailedOnAMachineThatStoodStillSaysSo(t *testing.T) {
	parted := errors.New("parted")
	for gap, says := range map[time.Duration]bool{0: false, 999 * time.Millisecond: false, time.Second: true} {
		err := stalled(parted, gap, 2*time.Second)
		if !errors.Is(err, parted) || strings.Contains(err.Error(), "stood still for 1s") != says {
			t.Errorf("after %v: %v", gap, err)
		}
	}
	if err := stalled(nil, time.Hour, time.Second); err != nil {
		t.Errorf("a run that has not failed: %v", err)
	}
}
