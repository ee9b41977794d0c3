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
			leave := map[string]func() error{
				"by the guardian": func() error { return g.lostHeartbeat(t.Context()) },
				"by protect":      func() error { return g.leaveCOLO(t.Context(), g.monitor()) },
			}
			for by, leave := range leave {
				m.mu.Lock()
				m.enters, m.parts, m.early = test.enters, 0, 0
				m.mu.Unlock()
				if err := leave(); err != nil {
					t.Fatal(by, err)
				}
				m.mu.Lock()
				if m.parts != 1 || m.early != test.early || test.enters > 1 && m.enters == test.enters {
					t.Errorf("%s: told %d times, %d of them while it was found there; %d times more it would be", by, m.parts, m.early, m.enters)
				}
				m.mu.Unlock()
			}
		})
	}
}
