package tap_test

import (
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/leaks"
)

func TestADeviceThatCannotBeMadeLeavesNothingOpen(t *testing.T) {
	open(t, tap.Config{}) // the test has a network namespace now
	make := func(cfg tap.Config) error {
		d, err := tap.Open(cfg)
		if err != nil {
			return err
		}
		return d.Close()
	}
	leaks.Starve(t, func() error { return make(tap.Config{VNetHdrLen: 12}) })
	before := leaks.Now(t)
	for _, bad := range []tap.Config{{VNetHdrLen: 12, Offload: 1 << 20}, {VNetHdrLen: 11}, {Name: "a name that is too long"}, {Offload: 1}} {
		if err := make(bad); err == nil {
			t.Errorf("%+v was made", bad)
		}
	}
	before.Check(t, "devices that could not be made")
}
