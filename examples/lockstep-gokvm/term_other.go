//go:build !linux

package main

import (
	"errors"
	"os"
)

// makeRaw knows no terminals here, where no guest runs either.
func makeRaw(*os.File) (restore func() error, err error) { return nil, errors.ErrUnsupported }
