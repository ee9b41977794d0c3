package main

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// follow gives the guest to a QEMU over w, which it closes, and then sends its memory. It
// returns when the QEMU has all of the memory.
func (s *standbyRun) follow(w *os.File) error {
	conn, err := net.FileConn(w)
	w.Close()
	if err != nil {
		return err
	}
	in, err := s.guest.Info()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var reg vmstate.Registry
	replica, memory, blocks, err := s.guest.NewLazyReplica(&reg, ram.SaverConfig{})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	// The QEMU's end closes the connection, and nothing else ends this.
	err = migrate.NewSource(migrate.SourceConfig{
		VM: replica, State: &reg, Memory: memory, Blocks: blocks, Machine: in.Machine, Postcopy: true, PostcopyAfter: -1,
	}).Run(context.Background(), conn)
	return errors.Join(err, replica.Close())
}

// socketPair returns two ends of one connection.
func socketPair() (a, b *os.File, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	return os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(fds[1]), "standby"), nil
}
