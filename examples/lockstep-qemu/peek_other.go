//go:build !unix

package main

// peek sees nothing here: that a peer has gone is known once it is read.
func peek(uintptr) error { return nil }
