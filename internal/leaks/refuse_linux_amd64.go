package leaks

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Call is a system call that Refuse refuses: the one of that number whose arguments have these values in
// their lower 32 bits. Arguments are counted from 0, and those that are not named have any value.
type Call struct {
	Number uintptr
	Args   map[int]uint32
}

// Refuse calls do on a thread on which the kernel refuses a system call with that error, as often as it is made.
// Other threads go on as they were. It returns the error of do, which must not end the test. The test is skipped where
// the kernel has no seccomp, or does not let this process use it.
func Refuse(t TB, c Call, with unix.Errno, do func() error) error {
	t.Helper()
	done := make(chan error)
	var fault error
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if fault = c.refuse(with); fault != nil {
			close(done)
			return
		}
		done <- do()
	}()
	err := <-done
	if fault != nil {
		unable(t, fault)
	}
	return err
}

// unable ends a test for which no filter could be set.
func unable(t TB, fault error) {
	t.Helper()
	if lacks(fault) {
		t.Skipf("no seccomp: %v", fault)
	} else {
		t.Fatalf("seccomp: %v", fault)
	}
}

// lacks reports whether err is that of a kernel without filters of system calls (EINVAL; ENOSYS of one that is emulated),
// or of one that keeps them from this process.
func lacks(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// refuse has the kernel refuse the call on this thread.
func (c Call) refuse(with unix.Errno) error {
	const nr, args = 0, 16 // in struct seccomp_data
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	var program []unix.SockFilter
	is := func(at, value uint32) {
		left := 2 * (len(c.Args) - len(program)/2) // to look at after this
		program = append(program, load(at), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: uint8(left) + 1})
	}
	is(nr, uint32(c.Number))
	for i, value := range c.Args {
		is(args+8*uint32(i), value)
	}
	program = append(program, answer(unix.SECCOMP_RET_ERRNO|uint32(with)), answer(unix.SECCOMP_RET_ALLOW))
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&p)), 0, 0)
}
