//go:build !linux

package replication

import "os"

// lockFile does nothing: there are no locks of open file descriptions here.
func lockFile(*os.File) error { return nil }

func unlockFile(*os.File) {}

// birth does not tell files apart here.
func birth(*os.File) (id [32]byte, err error) { return id, nil }

// LockedBy reports that no process has the image of that name locked: only Linux knows.
func LockedBy(string) (locked bool, pid int, err error) { return false, 0, nil }
