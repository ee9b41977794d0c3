package event_test

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/gocolo/lockstep/event"
)

func ExampleSubscribe() {
	var bus event.Bus
	cancel := event.Subscribe(&bus, func(c event.CheckpointCommit) {
		fmt.Printf("checkpoint %d: %d pages, paused %v\n", c.Epoch, c.Pages, time.Duration(c.PauseNS))
	})
	defer cancel()

	bus.Publish(event.Stop{})
	bus.Publish(event.CheckpointCommit{Epoch: 1, Pages: 64, PauseNS: 410_000})
	// Output: checkpoint 1: 64 pages, paused 410µs
}

func ExampleRecord_MarshalJSON() {
	bus := event.Bus{Now: func() time.Time { return time.Unix(1795170336, 804038000) }}
	out := json.NewEncoder(os.Stdout)
	bus.SubscribeAll(func(r event.Record) { out.Encode(r) })

	bus.Publish(event.COLOExit{Mode: event.ModeSecondary, Reason: event.ExitRequest})
	// Output: {"timestamp":{"seconds":1795170336,"microseconds":804038},"event":"COLO_EXIT","data":{"mode":"secondary","reason":"request"}}
}
