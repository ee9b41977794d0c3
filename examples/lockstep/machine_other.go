//go:build !linux || !amd64

package main

import (
	"errors"

	"github.com/gocolo/lockstep/colo/filter"
)

func newKVMMachine(sideConfig, *filter.Buffer) (machine, error) { return nil, errors.ErrUnsupported }
