package main

import (
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm/pc"
)

// What the comment of pc.Composer names. The tests of kvm/pc would link the whole of
// colo/protect for this; those of this program do anyway.
var _ = []pc.Composer{(*proxy.Primary)(nil), (*proxy.Secondary)(nil), (*protect.Proxy)(nil), (*protect.NIC)(nil)}
