package qemufile

import "time"

// window is the time over which a rate is taken and a rate limit spread; QEMU
// uses the same (BUFFER_DELAY in migration/migration.c).
const window = 100 * time.Millisecond

// meter measures the bytes that leave and keeps them below a limit.
type meter struct {
	start time.Time // of the present window; zero before the first byte
	bytes int64     // bytes that have left in this window
	rate  float64   // of the last complete window
	limit float64   // bytes per second; 0: none
}

func (m *meter) add(n int64) {
	now := time.Now()
	m.roll(now)
	if m.start.IsZero() {
		m.start = now
	}
	m.bytes += n
}

// roll ends the present window if it has lasted long enough.
func (m *meter) roll(now time.Time) {
	if m.start.IsZero() {
		return
	}
	if d := now.Sub(m.start); d >= window {
		m.rate = float64(m.bytes) / d.Seconds()
		m.start, m.bytes = now, 0
	}
}

// Rate returns how many bytes per second have left over the recent past: the
// last window of at least 100 ms, as told by flushes, or what is known of the
// first one. It is 0 before anything has left.
func (w *Writer) Rate() float64 {
	m := &w.meter
	if m.start.IsZero() {
		return 0
	}
	now := time.Now()
	m.roll(now)
	if m.rate == 0 && m.bytes > 0 {
		if d := now.Sub(m.start); d > 0 {
			return float64(m.bytes) / d.Seconds()
		}
	}
	return m.rate
}

// SetRateLimit tells savers to keep the stream below so many bytes per second;
// 0 means as fast as it goes. A Writer does not delay anything itself: savers
// ask [Writer.RateExceeded] and the loop that drives them waits
// [Writer.RateDelay].
func (w *Writer) SetRateLimit(bytesPerSecond float64) { w.meter.limit = max(bytesPerSecond, 0) }

// RateExceeded reports whether what was put in the present window of 100 ms,
// flushed or not, is more than the rate limit allows. It is always false
// without a limit.
func (w *Writer) RateExceeded() bool {
	m := &w.meter
	if m.limit == 0 {
		return false
	}
	now := time.Now()
	if m.start.IsZero() {
		m.start = now
	}
	m.roll(now)
	put := m.bytes + int64(len(w.buf)) + int64(w.refLen)
	return float64(put) >= m.limit*window.Seconds()
}

// RateDelay returns how long to wait before saving more: 0 when the limit is
// not exceeded, otherwise until the window ends.
func (w *Writer) RateDelay() time.Duration {
	if !w.RateExceeded() {
		return 0
	}
	return max(0, window-time.Since(w.meter.start))
}
