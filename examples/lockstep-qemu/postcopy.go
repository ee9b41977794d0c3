package main

import (
	"context"
	"errors"
	"net"
	"os"

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
