package tap_test

import (
	"fmt"

	"github.com/gocolo/lockstep/colo/filter/tap"
)

// A TAP interface is the network at the end of a guest's NIC.
func Example() {
	dev, err := tap.Open(tap.Config{Name: "guest%d", VNetHdrLen: 12, Offload: tap.OffloadTCP})
	if err != nil {
		fmt.Println(err) // it needs CAP_NET_ADMIN
		return
	}
	defer dev.Close()
	for {
		frame, err := dev.ReadPacket()
		if err != nil {
			return
		}
		fmt.Println(len(frame)) // give it to the guest
	}
}
