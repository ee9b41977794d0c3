package proxy_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
)

// A length of virtio-net headers that no frame can have makes each packet a malformed
// one: of neither guest, nor for the network.
func TestProxiesRefuseWhatEndsInItsHeader(t *testing.T) {
	for _, n := range []int{-12, -1, 3, 12, math.MaxInt} {
		for _, continuous := range []bool{false, true} {
			p := proxy.NewPrimary(proxy.PrimaryConfig{VM: stillVM{}, Deliver: func([]byte) error { return nil }, VNetHdr: n, Continuous: continuous})
			if err := p.WritePacket([]byte("abc")); !errors.Is(err, filter.ErrFrame) {
				t.Errorf("header of %d bytes, primary: %v", n, err)
			}
			s := proxy.NewSecondary(proxy.SecondaryConfig{VM: stillVM{}, Deliver: func([]byte) error { return nil }, VNetHdr: n, Continuous: continuous})
			if err := s.WritePacket([]byte("abc")); !errors.Is(err, filter.ErrFrame) {
				t.Errorf("header of %d bytes, secondary: %v", n, err)
			}
		}
	}
	for _, n := range []int{-1, filter.MaxVNetHdr + 1, math.MaxInt} {
		err := proxy.Announce(t.Context(), &quietWire{}, proxy.AnnounceConfig{VNetHdr: n, Neighbors: []proxy.Neighbor{{}}})
		if !errors.Is(err, filter.ErrFrame) {
			t.Errorf("header of %d bytes, announcement: %v", n, err)
		}
	}
}
