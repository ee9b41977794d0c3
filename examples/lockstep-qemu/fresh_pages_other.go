//go:build !linux

package main

import (
	"os"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// fresh knows nothing here.
func (q *process) fresh(*os.File) func(block string, pages int) ram.Bitmap { return nil }
