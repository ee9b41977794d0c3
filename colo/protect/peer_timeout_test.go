package protect

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
)

func TestAPeerThatBeatsMaySayNothingForThreeTimesLostByDefault(t *testing.T) {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for lost, want := range map[time.Duration]time.Duration{time.Second: colo.DefaultPeerTimeout, 20 * time.Second: time.Minute} {
		c := Config{Name: "g", Host: "a", Guest: g, Lost: lost, Peer: Peer{Listen: ":1", Dial: "y:1", PortConfig: PortConfig{Insecure: true}}}
		if err := c.check(); err != nil || c.PeerTimeout != want {
			t.Errorf("Lost %v: PeerTimeout is %v, want %v: %v", lost, c.PeerTimeout, want, err)
		}
	}
}
