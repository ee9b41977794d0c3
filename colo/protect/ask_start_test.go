package protect

import (
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Two hosts that are both about to start the guest must not take each other for one that only waits.
func TestAHostThatIsToStartItsGuestSaysThatItHasNotDecided(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a := s.start("a", true, nil)
		a.is(Alone)
		s.write("a", "of a")
		s.powerCut(a)
		a = s.start("a", false, func(c *Config) { c.Lost = 5 * time.Second; c.PeerTimeout = 10 * time.Second })
		a.is(Waiting)
		for _, want := range []State{Created, Alone} {
			got, err := Ask(t.Context(), s.question("x", "a"), "guest", "x")
			if err != nil || got.Host != "a" || got.State != want {
				t.Errorf("%+v, %v, want %v", got, err, want)
			}
			a.is(Alone)
		}
		a.halt()
	})
}

// A host answers for a generation only when it knows of which its disks are.
func TestAHostThatHasNotReadItsDisksDoesNotSayHowItStands(t *testing.T) {
	here, there := net.Pipe()
	j := &Job{cfg: Config{Host: "a"}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if h, err := readHello(there); err == nil {
			j.tell(there, h)
		}
	}()
	var refused *RefusedError
	if h, err := exchange(here, hello{Channel: chAsk, Guest: "guest", Host: "x"}); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "has not read its disks") {
		t.Errorf("%+v, %v", h, err)
	}
	here.Close()
	<-done
}
