package require

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// oneCPU in the environment says that the process was started by OneCPU.
const oneCPU = "LOCKSTEP_TEST_ONE_CPU"

// OneCPU reports whether the test runs in a process that has one CPU. If not, it runs the
// test in such a process, fails it if it fails there, and reports false: there is nothing
// left to do. With -short the test is skipped, as by [Outside].
func OneCPU(t interface {
	TB
	Name() string
}) bool {
	t.Helper()
	if os.Getenv(oneCPU) == t.Name() {
		if n := runtime.NumCPU(); n != 1 {
			t.Fatalf("the process has %d CPUs", n)
		}
		return true
	}
	Outside(t, Processes)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), oneCPU+"="+t.Name())
	said, err := runOnOneCPU(cmd)
	if err != nil || !strings.Contains(string(said), "--- PASS: "+t.Name()) {
		t.Fatalf("on one CPU: %v\n%s", err, said)
	}
	return false
}

// runOnOneCPU runs a process on the first CPU that this one may use. A child has the CPUs
// of the thread that starts it.
func runOnOneCPU(cmd *exec.Cmd) (said []byte, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, err
	}
	said, err = cmd.CombinedOutput()
	return said, errors.Join(err, unix.SchedSetaffinity(0, &all))
}
