//go:build !unix

package sharedfile

func linked(string) bool { return false }
