//go:build !linux

package replication

import (
	"errors"
	"os"
)

func checkFlags(*os.File) error { return nil }

func readOnly(*os.File) error { return nil }

func punchHole(_ *os.File, _, _ int64) error { return errors.ErrUnsupported }

func reserve(*os.File, int64) error { return nil }

func datasync(f *os.File) error { return f.Sync() }

func startSync(*os.File) {}
