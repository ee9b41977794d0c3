//go:build !linux || !amd64

package main

import (
	"errors"

	"github.com/gocolo/lockstep/internal/trial"
)

func newKVMMachine(trial.SideConfig, bool, sender, writer) (machine, error) {
	return nil, errors.ErrUnsupported
}
