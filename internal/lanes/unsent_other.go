//go:build !linux

package lanes

func setUnsent(uintptr) {}
