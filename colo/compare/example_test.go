package compare_test

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// A datagram leaves when the secondary's guest has said the same, another one
// waits for a while, and then for the checkpoint that is asked for.
func ExampleEngine() {
	// UDP from 10.0.0.1:53 to 10.0.0.2:5000.
	datagram := func(text string) compare.Frame {
		b, err := hex.DecodeString("0000000000000000000000000800" +
			"45000021000100004011000" + "00a0000010a000002" + "00351388000d0000")
		if err != nil {
			panic(err)
		}
		return compare.Frame{Data: append(b, text...)}
	}
	say := func(what string, r compare.Result) {
		fmt.Printf("%-10s releases %d, wants a checkpoint: %t\n", what, len(r.Release), r.Diverged)
	}
	now := time.Unix(0, 0)
	e := compare.NewEngine(compare.Config{})

	say("primary", e.Primary(datagram("hello"), now))
	say("secondary", e.Secondary(datagram("hello"), now))

	say("primary", e.Primary(datagram("12:00"), now))
	say("secondary", e.Secondary(datagram("12:01"), now))
	say("later", e.Tick(now.Add(10*time.Second)))
	e.Mark(0) // the checkpoint
	r, err := e.Received(0)
	if err != nil {
		fmt.Println(err)
	}
	say("receipt", r)
	// Output:
	// primary    releases 0, wants a checkpoint: false
	// secondary  releases 1, wants a checkpoint: false
	// primary    releases 0, wants a checkpoint: false
	// secondary  releases 0, wants a checkpoint: false
	// later      releases 0, wants a checkpoint: true
	// receipt    releases 1, wants a checkpoint: false
}
