package protect

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A guest stands still in a switchover for as long as the arbiter takes for one question: the host that takes it
// asks, and the one that gives it up does not. Where the arbiter of the host that takes it heeds no
// word of that kind both ask.
func TestInASwitchoverTheArbiterIsAskedOnceWhileTheGuestStandsStill(t *testing.T) {
	for name, c := range map[string]struct{ heeds, want []string }{
		"both arbiters heed it":                      {nil, []string{"b swap"}},
		"that of the host that takes the guest does": {[]string{"b"}, []string{"b swap"}},
		"that of the other does":                     {[]string{"a"}, []string{"a swap", "b swap"}},
		"none does":                                  {[]string{}, []string{"a swap", "b swap"}},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.heeds, w.term = c.heeds, time.Minute // nothing is renewed meanwhile
			var mu sync.Mutex
			var asked []string
			w.asked = func(host, what string) {
				mu.Lock()
				defer mu.Unlock()
				if what == "swap" { // the host that follows reads what changes, beside all this
					asked = append(asked, host+" "+what)
				}
			}
			a, b := w.protected()
			time.Sleep(250 * time.Millisecond)
			a.on(SwitchingOver, func() {
				mu.Lock()
				defer mu.Unlock()
				asked = nil
			})
			b.on(Alone, func() {
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(asked, c.want) {
					t.Errorf("the arbiter was asked for %v, want %v", asked, c.want)
				}
			})
			if err := a.job.Switchover(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.is(Protected)
			a.is(Following)
			w.andBack(a, b)
		})
	}
}

// A cutConn loses the note that tells the other host to go on, and all that comes after it.
type cutConn struct {
	net.Conn
	cut func()
}

func (c cutConn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), `"`+sayGo+`"`) {
		c.cut()
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// The link is cut when the guest has been given up, and the other host does not hear of it. It waits for the end of the
// term then, and the host that has given it up asks as soon as it knows that the other is lost: whoever is first
// goes on.
func TestAGuestThatIsGivenUpToAHostThatDoesNotHearItGoesOn(t *testing.T) {
	for name, term := range map[string]time.Duration{"where it ran": 20 * time.Second, "on the other": 500 * time.Millisecond} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.term = term
			var once sync.Once
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) {
				dialBy(c, func(conn net.Conn) net.Conn {
					return cutConn{conn, func() { once.Do(func() { w.f.part("a", "b", true) }) }}
				})
			})
			a.is(Protected)
			b.is(Following)
			time.Sleep(250 * time.Millisecond)
			next, other := a, b
			if err := a.job.Switchover(t.Context()); term > time.Second {
				if err == nil || !strings.Contains(err.Error(), "the guest runs on here") {
					t.Errorf("%v", err)
				}
			} else {
				if next, other = b, a; err == nil || !strings.Contains(err.Error(), "this host is waiting") {
					t.Errorf("%v", err)
				}
			}
			next.is(Alone)
			w.f.join("a", "b")
			next.is(Protected)
			other.is(Following)
			w.hearsMore()
			a.halt()
			b.halt()
		})
	}
}

// The arbiter goes out of reach when the guest has been given up. Neither host has it then, until one can ask: that
// one goes on, and the other follows.
func TestAGuestThatIsGivenUpWhileTheArbiterGoesAwayGoesOnWhenThatIsBack(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		bubble(t, first+" reaches it first", func(t *testing.T, w *world) {
			var once sync.Once
			var a, b *host
			b = w.boot("b", false, nil)
			a = w.boot("a", true, func(c *Config) {
				dialBy(c, func(conn net.Conn) net.Conn {
					return goConn{conn, func() {
						once.Do(func() {
							if a.job.Gate().Open() {
								t.Error("the gate of a host that gives its guest up is open")
							}
							a.noArbiter.Store(true)
							b.noArbiter.Store(true)
						})
					}}
				})
			})
			a.is(Protected)
			b.is(Following)
			time.Sleep(250 * time.Millisecond)
			done := make(chan error, 1)
			go func() { done <- a.job.Switchover(t.Context()) }()
			a.is(Asking)
			b.is(Asking)
			time.Sleep(5 * w.term)
			if a.job.Gate().Open() || b.job.Gate().Open() {
				t.Error("a host acts that was granted nothing")
			}
			next, other := a, b
			if first == "b" {
				next, other = b, a
			}
			next.noArbiter.Store(false)
			next.is(Alone)
			other.noArbiter.Store(false)
			next.is(Protected)
			other.is(Following)
			<-done
			w.hearsMore()
			a.halt()
			b.halt()
		})
	}
}

// A goConn is told when the note leaves that tells the other host to go on.
type goConn struct {
	net.Conn
	leaves func()
}

func (c goConn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), `"`+sayGo+`"`) {
		c.leaves()
	}
	return c.Conn.Write(p)
}

// A forgedConn says that another holder has given the guest up.
type forgedConn struct {
	net.Conn
	token string
}

func (c forgedConn) Write(p []byte) (int, error) {
	if s := string(p); len(p) > 2 && strings.Contains(s, `"from":"`) {
		n, err := readNote(strings.NewReader(s))
		if err != nil {
			return 0, err
		}
		n.From = c.token
		if err := writeNote(c.Conn, n); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// What a note says of a holder is no more than a name: the arbiter grants the guest only to who names the holder that
// it knows. A name that cannot be one ends the connection.
func TestAHostIsGrantedNothingByTheNameOfAnotherHolder(t *testing.T) {
	for name, token := range map[string]string{"another's": "another", "too long a one": strings.Repeat("a", failover.MaxName+1)} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.term = time.Minute // or it is granted the guest at the end of that
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) {
				dialBy(c, func(conn net.Conn) net.Conn { return forgedConn{conn, token} })
			})
			a.is(Protected)
			b.is(Following)
			time.Sleep(250 * time.Millisecond)
			if err := a.job.Switchover(t.Context()); err == nil || !strings.Contains(err.Error(), "the guest runs on here") {
				t.Errorf("%v", err)
			}
			a.is(Protected)
			b.is(Following)
			if strings.Contains(b.states(), Alone.String()) {
				t.Errorf("b has had the guest: %v", b.states())
			}
			w.hearsMore()
			a.halt()
			b.halt()
		})
	}
}
