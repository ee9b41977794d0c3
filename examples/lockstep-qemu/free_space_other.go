//go:build !linux && !darwin && !freebsd

package main

import "errors"

// freeIn knows nothing here.
func freeIn(string) (uint64, error) { return 0, errors.ErrUnsupported }
