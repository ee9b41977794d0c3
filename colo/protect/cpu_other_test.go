//go:build !unix

package protect

import "time"

// cpuTime returns 0: the CPU time of this process is not known here.
func cpuTime() time.Duration { return 0 }
