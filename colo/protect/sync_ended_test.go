package protect

import (
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/event"
)

// A resetConn is the connection of a session, which is reset when its synchronisation writes next,
// after before. A side that closes a connection on which something is under way resets it, and a
// write may notice that first of all.
type resetConn struct {
	net.Conn
	before func() // nil: it is not reset
}

func (c *resetConn) Write(p []byte) (int, error) {
	if c.before == nil {
		return c.Conn.Write(p)
	}
	c.before()
	return 0, syscall.ECONNRESET
}

// A synchronisation that somebody ends on purpose is no loss of the other host, though the
// connection that the other host closes for it is noticed before its word is, or before the end here.
func TestASynchronisationThatIsEndedOnPurposeIsNoLoss(t *testing.T) {
	t.Parallel()
	for why, begins := range map[string]func(*session){ // to end, as the session hears and expects
		"the protection was paused on this host": func(s *session) { s.setPurpose(toPause); s.colo.Expect(errInOrder) },
		"the protection was ended on this host":  func(s *session) { s.setPurpose(toCancel); s.colo.Expect(errInOrder) },
		"b leaves": func(s *session) {
			s.peer.set(func() { s.peer.departs = true })
			s.endsInOrder(&leavesError{s.peer.host})
		},
	} {
		bubble(t, why, func(t *testing.T, w *world) {
			b := w.boot("b", false, nil)
			var a *host
			var once sync.Once
			booted, ended := make(chan struct{}), make(chan struct{})
			log := new(lines)
			a = w.boot("a", true, func(cfg *Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
				var conn *resetConn
				cfg.Session.Conn = func(_ event.Mode, under net.Conn) net.Conn {
					conn = &resetConn{Conn: under}
					return conn
				}
				cfg.Session.Step = func(_ event.Mode, op string, _ uint64) {
					if op == "send ram while running" {
						once.Do(func() {
							conn.before = func() {
								<-booted
								s := a.job.session()
								begins(s)
								conn.before = nil
								close(ended)
							}
						})
					}
				}
			})
			close(booted)
			<-ended
			a.is(Protected)
			if line := "\nalone " + why + "\n"; !strings.Contains(a.reasons(), line) {
				t.Errorf("no line %q in\n%s", line, a.reasons())
			}
			if !log.has("msg=PROTECTION_ENDED", "why="+strconv.Quote(why)) {
				t.Errorf("the end of the protection is not told with %q:\n%s", why, strings.Join(log.all(), "\n"))
			}
			by := event.ModePrimary
			if why == "b leaves" {
				by = event.ModeSecondary
			}
			if ends := said[event.ProtectionEnded](a); len(ends) != 1 || ends[0].By != by {
				t.Errorf("%+v, which was ordered on the %s", ends, by)
			}
			if q := a.job.Query(); q.LastError != nil {
				t.Errorf("a says %v", q.LastError)
			}
			a.halt()
			b.halt()
		})
	}
}
