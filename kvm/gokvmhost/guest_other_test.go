//go:build !linux || !amd64

package gokvmhost_test

// asGuest does nothing: no guest runs this binary.
func asGuest() {}
