package migrate

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
)

func TestAGuestRunsBeforeItsMemoryIsThere(t *testing.T) {
	m := newMove(t, 1)
	m.run()
	m.arrived()
	s, d := m.source.Stats, m.destination.Stats
	if !s.Postcopy || !d.Postcopy || s.Passes != 1 || d.Placed == 0 {
		t.Errorf("%+v, %+v", s, d)
	}
}

func TestAGuestMayGoBeforeAnyOfItsMemory(t *testing.T) {
	m := newMove(t, 1)
	m.source.cfg.PostcopyAfter = -1
	m.run()
	m.arrived()
	s, d := m.source.Stats, m.destination.Stats
	pages := 0
	for _, b := range m.src.blocks {
		pages += len(b.Host) / page
	}
	if !s.Postcopy || s.Passes != 0 || int(s.Memory.Pages) != pages {
		t.Errorf("%+v, %+v, of %d pages", s, d, pages)
	}
}

// A destination that cannot run a guest before its memory has said so before it gets one.
func TestAGuestThatMayNotGoBeforeItsMemoryRunsOn(t *testing.T) {
	m := newMove(t, 1)
	m.source.cfg.PostcopyAfter = -1
	m.destination = NewDestination(DestinationConfig{VM: m.dst, State: &m.dst.state, Memory: m.dst.lazy, Blocks: m.dst.blocks, Machine: "test"})
	m.run()
	if m.srcErr == nil || errors.Is(m.srcErr, ErrUnknown) || errors.Is(m.srcErr, ErrPaused) || m.dstErr == nil {
		t.Errorf("%v, %v", m.srcErr, m.dstErr)
	}
	m.oneSide()
}

func TestADeviceMayTouchMemoryThatIsMissing(t *testing.T) {
	m := newMove(t, 2)
	m.hold = true
	m.dst.device.after = func() error { return m.dst.lazy.Ensure("pc.ram", 0, 96*page) }
	m.run()
	m.arrived()
	if m.destination.Stats.Touched == 0 {
		t.Error("nothing was asked for")
	}
}

// cut breaks a connection at its n-th write in one direction.
func cut(direction int, n int64, drop bool) (f [2]colotest.Flow) {
	f[direction] = colotest.Flow{Break: colotest.Point{Op: colotest.Write, N: n}, Drop: drop}
	return f
}

func TestNothingIsLostWhereverTheConnectionBreaks(t *testing.T) {
	whole := newMove(t, 3)
	whole.hold = true
	whole.run()
	whole.arrived()
	for direction, name := range []string{"forth", "back"} {
		t.Run(name, func(t *testing.T) {
			traffic := whole.sent[0][direction]
			before, after := 0, 0 // the guest was handed over
			step := traffic.Bytes/40 + 1
			n := 0
			for p := range traffic.Points(func(i int64) bool { return i%step == 0 }) {
				if n++; p.Op == colotest.Read || testing.Short() && n%4 != 0 {
					continue
				}
				var f [2]colotest.Flow
				f[direction] = colotest.Flow{Break: p, Drop: p.N%2 == 0}
				m := newMove(t, 3, f)
				m.hold = true
				m.run()
				switch {
				case m.srcErr == nil:
					m.arrived()
					after += m.source.Stats.Recovered
				case m.dstErr == nil && errors.Is(m.srcErr, ErrPaused):
					m.whole() // only the word that it is was lost
					after++
				default:
					m.oneSide()
					before++
				}
				if t.Failed() {
					t.Fatalf("broken at %v: %v, %v", p, m.srcErr, m.dstErr)
				}
			}
			t.Logf("%d writes, %d bytes: %d broken before the guest went, %d after", traffic.Writes, traffic.Bytes, before, after)
			if after == 0 {
				t.Error("no connection was taken up again")
			}
		})
	}
}

// oneSide fails if both guests run, or none does and the source does not say that it cannot
// know.
func (m *move) oneSide() {
	m.t.Helper()
	src, _ := m.src.runs()
	dst, _ := m.dst.runs()
	if src && dst {
		m.t.Fatalf("both guests run: %v, %v", m.srcErr, m.dstErr)
	}
	if m.srcErr == nil || !src && !errors.Is(m.srcErr, ErrUnknown) {
		m.t.Fatalf("the guest runs at the source %v, at the destination %v: %v, %v", src, dst, m.srcErr, m.dstErr)
	}
}

// settled checks who has the guest after a connection that was to break at a point, and reports
// whether the source knows that it has arrived.
func (m *move) settled(at colotest.Point) (arrived bool) {
	m.t.Helper()
	switch {
	case m.srcErr == nil:
		m.arrived()
	case m.dstErr == nil:
		if !errors.Is(m.srcErr, ErrUnknown) {
			m.t.Errorf("broken at %v: %v", at, m.srcErr)
		}
		m.whole()
	default:
		m.oneSide()
	}
	if m.t.Failed() {
		m.t.Fatalf("broken at %v: %v, %v", at, m.srcErr, m.dstErr)
	}
	return m.srcErr == nil
}

func TestAConnectionMayBreakAgainAndAgain(t *testing.T) {
	whole := newMove(t, 4)
	whole.hold = true
	whole.run()
	whole.arrived()
	// How often the source writes depends on when it is asked for what; what it has written
	// when the guest goes does not. Behind that there is a page at least.
	var first [2]colotest.Flow
	first[0] = colotest.Flow{Break: colotest.Point{Op: colotest.Byte, N: whole.behind + 32}, Drop: true}
	flows := [][2]colotest.Flow{first}
	for n := range int64(8) {
		flows = append(flows, cut(int(n%2), n/2, n%3 == 0))
	}
	m := newMove(t, 4, flows...)
	m.hold = true
	m.run()
	m.whole()
	if m.srcErr != nil && !errors.Is(m.srcErr, ErrPaused) { // the last word may have been lost
		t.Error(m.srcErr)
	}
	if n := m.destination.Stats.Recovered; n < 3 {
		t.Errorf("%d connections after the first", n)
	}
}

func TestADestinationThatHasTakenUpPostcopyHasTheGuest(t *testing.T) {
	// The third PONG, which says so first, is lost with the first connection. The second one
	// breaks when it has been taken up: behind two RECV_BITMAP and POSTCOPY_RESUME.
	m := newMove(t, 5, cut(1, 2, true), cut(0, 3, false))
	m.hold, m.last = true, 2
	m.dst.onRun = nil
	m.run()
	if !errors.Is(m.srcErr, ErrPaused) || errors.Is(m.srcErr, ErrUnknown) || m.source.Stats.Recovered != 1 {
		t.Errorf("%v after %d connections more", m.srcErr, m.source.Stats.Recovered)
	}
}

func TestAGuestThatIsTheDestinationsRunsThoughTheContextEnds(t *testing.T) {
	for name, newMove := range map[string]func(testing.TB, uint64, ...[2]colotest.Flow) *move{
		"precopy": newPrecopy, "postcopy": newMove,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMove(t, 9)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			m.dst.before, m.dst.onRun = cancel, nil
			a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
			ended := make(chan error, 1)
			go func() { ended <- m.destination.Run(ctx, b) }()
			src := m.source.Run(t.Context(), &held{Conn: a, asked: make(chan struct{})})
			dst := <-ended
			if name == "precopy" {
				check(t, src, dst)
			} else if !errors.Is(dst, ErrPaused) {
				t.Errorf("%v, %v", src, dst)
			}
			if running, _ := m.dst.runs(); !running {
				t.Errorf("the guest runs nowhere: %v, %v", src, dst)
			}
			check(t, m.dst.lazy.Close())
		})
	}
}

func TestAGuestThatHasNotRunIsNotPaused(t *testing.T) {
	m := newMove(t, 10)
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	m.dst.device.after = func() error {
		a.Break()
		return m.dst.lazy.Ensure("pc.ram", 0, 96*page) // which will not come
	}
	ended := make(chan error, 1)
	go func() { ended <- m.destination.Run(t.Context(), b) }()
	src := m.source.Run(t.Context(), &held{Conn: a, asked: make(chan struct{})})
	dst := <-ended
	if dst == nil || errors.Is(dst, ErrPaused) {
		t.Errorf("%v, %v", src, dst)
	}
	if running, _ := m.dst.runs(); running {
		t.Error("the guest runs")
	}
	check(t, m.dst.lazy.Close())
}

func TestASourceThatGivesUpHasReleasedWhatItTook(t *testing.T) {
	m := newMove(t, 11)
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	m.dst.onRun = a.Break
	ended := make(chan error, 1)
	go func() { ended <- m.destination.Run(t.Context(), b) }()
	src := m.source.Run(t.Context(), &held{Conn: a, asked: make(chan struct{})})
	<-ended
	if src == nil || m.src.started != 1 || m.src.logging || m.source.Stats.Memory.Pages == 0 {
		t.Errorf("%v; the log was started %d times and is on: %v; %+v", src, m.src.started, m.src.logging, m.source.Stats)
	}
	check(t, m.dst.lazy.Close())
}
