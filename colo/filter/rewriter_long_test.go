package filter_test

import (
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// The numbers of a connection of some GiB come round. What belongs to it is not taken for the answer to
// a SYN|ACK that the guest has never sent, though a stranger has sent a SYN.
func TestAConnectionOfGibibytesStaysTheOneThatItIs(t *testing.T) {
	const step, total = 1<<28 + 100, 5 << 30
	for _, byGuest := range []bool{false, true} {
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprintf("byGuest=%t, failover=%t", byGuest, over), func(t *testing.T) {
				x := talking(t, byGuest)
				client, primary, secondary := uint32(501), uint32(1001), uint32(9001)
				for n := uint64(0); n < total; n += step {
					// A SYN of a stranger, by whose number the client's next segment could be of its connection.
					x.in("SYN", fmt.Sprintf("%d/0", client-1), packet.SYN, client-1, 0)
					x.out("the challenge", fmt.Sprintf("%d/%d", primary, client), packet.ACK, secondary, client)
					if over && n == 16*step { // which is a little more than there are numbers
						x.r.Failover()
					}
					// The client acknowledges less than all: what was sent before the numbers came round.
					late := uint32(min(n, step/2))
					x.in("the client's data", fmt.Sprintf("%d/%d", client, secondary-late), packet.ACK, client, primary-late, 'c')
					client += step
					primary, secondary = primary+step, secondary+step
					x.out("the guest's data", fmt.Sprintf("%d/%d", primary-1, client), packet.ACK, secondary-1, client, 'g')
					x.in("all", fmt.Sprintf("%d/%d", client, secondary), packet.ACK, client, primary)
				}
			})
		}
	}
}
