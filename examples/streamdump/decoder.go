package main

import (
	"github.com/gocolo/lockstep/internal/zstd"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// decoder makes decoders for the channels.
func decoder(m multifd.Method) (multifd.Decoder, error) {
	if m == multifd.Zstd {
		return new(zstd.Decoder), nil
	}
	return multifd.DecodeZlib(m)
}
