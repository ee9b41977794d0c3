package pc_test

import (
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm/pc"
)

// What pc.Composer names.
var _ = []pc.Composer{(*proxy.Primary)(nil), (*proxy.Secondary)(nil), (*protect.Proxy)(nil)}
