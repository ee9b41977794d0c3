//go:build !amd64

package linuxguest

// tscKHz returns 0: an emulated machine measures for itself.
func tscKHz() uint64 { return 0 }
