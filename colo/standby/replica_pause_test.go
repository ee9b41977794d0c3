package standby

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A Pause that fails does not count: whoever follows the guest's primary goes on, and the next Pause
// fails again.
func TestAReplicaThatCannotPauseTheGuestDoesNotHoldIt(t *testing.T) {
	g := New(Config{})
	g.img, g.born = new(image), true
	of := func(version uint32) []section {
		return []section{{Header: vmstate.Header{Name: "dev", Version: version}, body: []byte{1}}}
	}
	g.cur.sections = of(1)
	p, _, err := g.NewReplica(new(vmstate.Registry), ram.SaverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	g.cur.sections = of(2)
	for range 2 {
		if err := p.Pause(t.Context()); !errors.Is(err, vmstate.ErrVersion) {
			t.Fatal(err)
		}
		if !g.mu.TryLock() {
			t.Fatal("the guest is held")
		}
		g.mu.Unlock()
	}
}
