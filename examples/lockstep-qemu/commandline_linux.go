package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/gocolo/lockstep/event/qmp"
)

// findQEMU finds the process of the QEMU whose monitor, at addr, conn is connected to, or
// looks at pid if that is not 0.
func findQEMU(conn net.Conn, addr string, pid int) (running, error) {
	_, path := qmp.Split(addr)
	given := pid != 0
	if !given {
		var err error
		switch c := conn.(type) {
		case *net.UnixConn:
			pid, err = listenerOf(c)
		case *net.TCPConn:
			_, path, _ = net.SplitHostPort(path) // what of it is on the command line
			pid, err = peerOf(c)
		default:
			err = errors.New("nothing tells whose its monitor is (-pid names its process)")
		}
		if err != nil {
			return running{}, err
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return running{}, err
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, maxCommandLine+1))
	if err != nil {
		return running{}, err
	}
	if len(line) == 0 || len(line) > maxCommandLine {
		return running{}, fmt.Errorf("process %d has one of %d bytes", pid, len(line))
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	// The process that listens need not be the QEMU that serves: a socket can be handed to a
	// QEMU, and a proxy can stand in front of its socket.
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // not readable for a process of another user
	if err := serves(exe, args, path); err != nil && !given {
		return running{}, fmt.Errorf("process %d listens at its monitor and %w (-pid names the QEMU's)", pid, err)
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return running{}, err
	}
	return running{
		args: args,
		dir:  dir,
		exists: func(name string) bool {
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			_, err := os.Stat(name)
			return err == nil
		},
	}, nil
}

// listenerOf returns the process that listens at the other end.
func listenerOf(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *syscall.Ucred
	if e := raw.Control(func(fd uintptr) { who, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED) }); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	if who.Pid <= 0 {
		return 0, errors.New("the process that listens at its monitor is not seen from here (-pid names the QEMU's)")
	}
	return int(who.Pid), nil
}
