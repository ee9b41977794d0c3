package migrate

import (
	"context"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
)

// watched has the steps of a migration write down where each side says that it is.
func watched(m *move) (source, destination *[]Status) {
	source, destination = new([]Status), new([]Status)
	note := func() {
		*source = append(*source, m.source.Progress().Status)
	}
	note()
	*destination = append(*destination, m.destination.Progress().Status)
	paused, ran := m.src.onPause, m.dst.onRun
	m.src.onPause = func() { paused(); note() }
	m.dst.onRun = func() {
		ran()
		*destination = append(*destination, m.destination.Progress().Status)
	}
	return source, destination
}

func TestProgressSaysWhereAMigrationIs(t *testing.T) {
	for name, c := range map[string]struct {
		newMove             func(testing.TB, uint64, ...[2]colotest.Flow) *move
		source, destination []Status
	}{
		"precopy":  {newPrecopy, []Status{StatusSetup, StatusDevice}, []Status{StatusSetup, StatusActive}},
		"postcopy": {newMove, []Status{StatusSetup, StatusDevice}, []Status{StatusSetup, StatusPostcopy}},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.newMove(t, 12)
			source, destination := watched(m)
			m.run()
			m.arrived()
			if !slices.Equal(*source, c.source) || !slices.Equal(*destination, c.destination) {
				t.Errorf("%v, %v", *source, *destination)
			}
			s, d := m.source.Progress(), m.destination.Progress()
			if s.Status != StatusCompleted || s.Remaining != 0 || s.Passes != m.source.Stats.Passes || s.Recovered != 0 || s.Elapsed <= 0 {
				t.Errorf("%+v", s)
			}
			if total := uint64(m.sent[0][0].Bytes); s.Sent != total {
				t.Errorf("%d bytes, of %d", s.Sent, total)
			}
			if d.Status != StatusCompleted || d.Remaining != 0 {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestProgressSaysThatThereIsNoConnection(t *testing.T) {
	whole := newMove(t, 4)
	whole.hold = true
	whole.run()
	whole.arrived()
	var f [2]colotest.Flow
	f[0] = colotest.Flow{Break: colotest.Point{Op: colotest.Byte, N: whole.behind + 32}, Drop: true}
	m := newMove(t, 4, f)
	m.hold = true
	var source, destination Progress
	m.paused = func() {
		// The destination has been told of the source's next connection, so both know.
		source, destination = m.source.Progress(), m.destination.Progress()
	}
	m.run()
	m.arrived()
	if source.Status != StatusPostcopyPaused || source.Remaining == 0 {
		t.Errorf("%+v", source)
	}
	if destination.Status != StatusPostcopyPaused || destination.Remaining == 0 {
		t.Errorf("%+v", destination)
	}
	s := m.source.Progress()
	if s.Status != StatusCompleted || s.Recovered != 1 || s.Remaining != 0 || s.Sent < source.Sent {
		t.Errorf("%+v, after %+v", s, source)
	}
}

func TestProgressSaysThatAMigrationHasFailed(t *testing.T) {
	m := newPrecopy(t, 13)
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	b.Close()
	if err := m.source.Run(context.Background(), a); err == nil || m.source.Progress().Status != StatusFailed {
		t.Errorf("%v, %+v", err, m.source.Progress())
	}
	a, b = colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	a.Close()
	if err := m.destination.Run(context.Background(), b); err == nil || m.destination.Progress().Status != StatusFailed {
		t.Errorf("%v, %+v", err, m.destination.Progress())
	}
}
