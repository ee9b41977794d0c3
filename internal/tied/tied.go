// Package tied starts processes that do not outlive the one that has started them, on Linux:
// a machine of a test, a host of an example that its parent may have stopped.
package tied

import (
	"os/exec"
	"runtime"
)

// Start starts a command whose process does not outlive this one, on Linux, however
// this one ends: by SIGKILL or the timeout of a test run, say; not even where it is stopped.
// The caller calls release once the process has ended.
func Start(cmd *exec.Cmd) (release func(), err error) {
	started, over := make(chan error), make(chan struct{})
	go func() { // ends with release
		// What Linux waits for is the end of the thread that has started the
		// process, so that one is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tie(cmd)
		err := cmd.Start()
		started <- err
		if err == nil {
			<-over
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return func() { close(over) }, nil
}
