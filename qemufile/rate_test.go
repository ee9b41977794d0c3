package qemufile

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestRateIsOfTheLastWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(io.Discard)
		if w.Rate() != 0 || w.RateDelay() != 0 {
			t.Error("a rate before anything was sent")
		}
		send := func(n int) {
			w.Write(make([]byte, n))
			w.Flush()
		}
		send(1 << 20)
		time.Sleep(50 * time.Millisecond)
		if r := w.Rate(); r != 20<<20 {
			t.Errorf("in the first window %.0f", r)
		}
		time.Sleep(50 * time.Millisecond)
		if r := w.Rate(); r != 10<<20 {
			t.Errorf("after the first window %.0f", r)
		}
		send(1000)
		time.Sleep(200 * time.Millisecond)
		if r := w.Rate(); r != 5000 {
			t.Errorf("after the second window %.0f", r)
		}
	})
}

func TestTheRateLimitSpreadsOverAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(io.Discard)
		w.SetRateLimit(10 << 20)
		start := time.Now()
		for sent := 0; sent < 10<<20; sent += 64 << 10 {
			if d := w.RateDelay(); d > 0 {
				time.Sleep(d)
			}
			w.Write(make([]byte, 64<<10))
		}
		if d := time.Since(start); d < 900*time.Millisecond || d > 1100*time.Millisecond {
			t.Errorf("10 MiB at 10 MiB/s took %v", d)
		}
		w.SetRateLimit(0)
		if w.RateExceeded() {
			t.Error("no limit is exceeded")
		}
	})
}
