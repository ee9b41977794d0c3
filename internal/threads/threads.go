// Package threads helps the threads that run vCPUs: each is in the guest, and not in Go code,
// for long, and the goroutine of a vCPU is bound to its thread. More makes room for them in
// Go's runtime, and a Signal has them wait in the kernel.
package threads

import (
	"runtime"
	"sync"
)

var mu sync.Mutex // GOMAXPROCS is read and written in two calls

// More lets the runtime run Go code beside that many vCPUs: a thread that comes back from
// the guest then need not wait for a place. The function that it returns undoes that, and
// is called once. Several guests of a process may begin and end at the same time.
func More(vcpus int) (undo func()) {
	add(vcpus)
	return func() { add(-vcpus) }
}

func add(n int) {
	mu.Lock()
	defer mu.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}
