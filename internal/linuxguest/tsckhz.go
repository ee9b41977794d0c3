package linuxguest

import (
	"time"

	"github.com/gocolo/lockstep/internal/linuxguest/tsc"
)

// tscKHz measures the rate of this host's time-stamp counter, which is that of an
// emulated machine's; 0 where there is none. Two machines that measure it themselves, on
// a busy host, come to results so far apart that a guest's state of one is refused on
// the other.
func tscKHz() uint64 {
	const long = 100 * time.Millisecond
	begin, first := time.Now(), tsc.Read()
	time.Sleep(long)
	took, ticks := time.Since(begin), tsc.Read()-first
	return uint64(float64(ticks) / took.Seconds() / 1000)
}
