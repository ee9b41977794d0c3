package compare_test

import (
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/require"
)

// Guests that leave checksums and the cutting of segments to their device, over each
// kind of header, and guests that do not; the kernel's default sysctls, and two
// clocks. Halfway the primary's host dies.
func TestStacksWithOffloadsAndTwoClocksAreFoundEqual(t *testing.T) {
	for _, c := range []struct {
		vnet    int
		offload tap.Offload
	}{{0, 0}, {10, tap.OffloadTCP}, {12, 0}, {12, tap.OffloadTCP}, {20, tap.OffloadChecksum}, {24, tap.OffloadTCP}} {
		for name, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
			t.Run(fmt.Sprintf("%d/%#x/%s", c.vnet, c.offload, name), func(t *testing.T) {
				usual := c.offload == 0 && c.vnet == 0 || c.offload != 0 && c.vnet == 12
				if !usual && (testing.Short() || !require.Wanted(require.NetNS)) {
					t.Skip("with LOCKSTEP_REQUIRE=netns each kind of header")
				}
				w := newWorldOf(t, tap.Config{VNetHdrLen: c.vnet, Offload: c.offload}, 1<<31+12345, func(*link) {})
				startServers(t, w)
				conn := w.dial(t, "tcp", at(addr))
				download(t, conn, 1<<20, 1, func() {})
				upload(t, conn, 1<<20, 2, func() {})
				s, _ := w.cmp.Stats()
				if s.Matched == 0 {
					t.Error("nothing was compared")
				}
				download(t, conn, 1<<20, 3, func() { w.cutOff(t) })
				upload(t, conn, 1<<20, 4, func() {})
				w.check(t)
				if w.rewritten().Rewritten == 0 {
					t.Error("nothing was rewritten")
				}
				w.down.mu.Lock()
				defer w.down.mu.Unlock()
				if cut := c.offload&tap.OffloadTSO4 != 0; cut != (w.down.longest > 1514+c.vnet) {
					t.Errorf("the longest frame has %d bytes", w.down.longest)
				}
				if partial := c.offload != 0; partial != (w.down.partial > 0) {
					t.Errorf("%d checksums were partial", w.down.partial)
				}
			})
		}
	}
}
