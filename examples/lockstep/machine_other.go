//go:build !linux || !amd64

package main

import "errors"

func newKVMMachine(sideConfig, sender, *disk) (machine, error) {
	return nil, errors.ErrUnsupported
}
