// Command confine runs a program that may start no process and open no /dev/kvm, and fails
// if it does. It is there for the -exec of go test: with it, go test -short shows that
// -short uses nothing outside the tests. It needs root, for a mount namespace.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inside is the first argument of the process that becomes the program.
const inside = "-inside"

const device = "/dev/kvm"

func main() {
	if len(os.Args) > 3 && os.Args[1] == inside {
		fail(become(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) < 2 {
		fail(errors.New("usage: confine program [argument ...]"))
	}
	status, err := run(os.Args[1:])
	if err != nil {
		fail(err)
	}
	os.Exit(status)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "confine:", err)
	os.Exit(1)
}

// run runs the program in a mount namespace of its own, with an empty file in the place of
// the device, and returns its exit status.
func run(args []string) (status int, err error) {
	empty, err := os.CreateTemp("", "kvm")
	if err != nil {
		return 0, err
	}
	defer os.Remove(empty.Name())
	defer empty.Close()
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, empty.Name(), unix.IN_OPEN); err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", append([]string{inside, empty.Name()}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the child dies with this thread
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if w := exit.Sys().(syscall.WaitStatus); w.Signaled() && w.Signal() == unix.SIGSYS {
			return 0, errors.New("the program has started a process; -v says which test")
		} else if w.Signaled() {
			return 0, err
		}
		status = exit.ExitCode()
	case err != nil:
		return 0, err
	}
	var events [4096]byte
	switch n, err := unix.Read(watch, events[:]); {
	case n > 0:
		return 0, fmt.Errorf("the program has opened %s", device)
	case !errors.Is(err, unix.EAGAIN):
		return 0, err
	}
	return status, nil
}

// become puts the file in the place of the device and becomes the program. It returns only
// if it cannot.
func become(file string, args []string) error {
	runtime.LockOSThread() // a filter belongs to a thread, and this one becomes the program
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if _, err := os.Stat(device); err == nil {
		if err := unix.Mount(file, device, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", device, err)
		}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	env := os.Environ()
	if err := startNothing(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return unix.Exec(path, args, env)
}

// startNothing makes the kernel kill this process, or the program that it becomes, when it
// starts another process. It may start threads.
func startNothing() error {
	const nr, flags = 0, 16 // in struct seccomp_data: the call, and its first argument
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	jump := func(test uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	program := []unix.SockFilter{
		load(nr),
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 6, 0), // its flags are in memory, which no filter reads
		jump(unix.BPF_JEQ, unix.SYS_FORK, 4, 0),
		jump(unix.BPF_JEQ, unix.SYS_VFORK, 3, 0),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 4),
		load(flags),
		jump(unix.BPF_JSET, unix.CLONE_THREAD, 2, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&p)), 0, 0)
}
