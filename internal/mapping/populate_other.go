//go:build !linux

package mapping

func populate([]byte) {}
