package colotest_test

import (
	"context"
	"fmt"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A guest runs its rounds, sends a frame after each, and a client of it can tell
// whether what it hears is one history.
func ExampleVM() {
	cfg := colotest.VMConfig{Pages: 4, Touch: 2, Seed: 1}
	client, err := colotest.NewOracle(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg.Output = func(frame []byte) error {
		client.Frame(frame)
		return nil
	}
	guest, err := colotest.NewVM(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer guest.Close()
	if err := guest.Resume(context.Background()); err != nil {
		fmt.Println(err)
	}
	if err := guest.Step(3); err != nil {
		fmt.Println(err)
	}
	fmt.Println(guest.Rounds(), client.Rounds(), client.Verdict().Clean())
	// Output: [3] [3] true
}
