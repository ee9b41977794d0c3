package main

import "testing"

// A QEMU that is about to enter COLO is not told to leave it in that moment, which would end
// it; one whose standby does not answer stands there for good, and is told.
func TestAQEMUThatEntersCOLOIsToldToLeaveItAMomentLater(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		enters int // how often it is found there
		early  int
	}{
		"it runs":                        {0, 0},
		"it has just entered":            {1, 0},
		"its standby does not answer it": {1 << 30, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newFakeMonitor(t)
			g := guarding(t, m)
			m.mu.Lock()
			m.enters = test.enters
			m.mu.Unlock()
			if err := g.lostHeartbeat(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.parts != 1 || m.early != test.early || test.enters > 1 && m.enters == test.enters {
				t.Errorf("told %d times, %d of them while it was found there; %d times more it would be", m.parts, m.early, m.enters)
			}
		})
	}
}
