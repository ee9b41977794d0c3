//go:build !linux || !amd64

package main

import (
	"errors"

	"github.com/gocolo/lockstep/colo/filter"
)

func newKVMMachine(sideConfig, *filter.Buffer, *disk) (machine, error) {
	return nil, errors.ErrUnsupported
}
