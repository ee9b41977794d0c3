package main

import "github.com/gocolo/lockstep/vmstate/ram/multifd"

// decoder makes decoders for the channels.
func decoder(m multifd.Method) (multifd.Decoder, error) { return multifd.DecodeZlib(m) }
