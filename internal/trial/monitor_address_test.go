package trial

import "testing"

func TestTheSecondarysMonitorIsBesideThePrimarys(t *testing.T) {
	for addr, want := range map[string]string{"": "", "unix:/tmp/m": "unix:/tmp/m.secondary", "localhost:4444": "localhost:4445", "localhost:65535": "!"} {
		got, err := MonitorOf(addr, Secondary)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", addr, got, want)
		}
	}
}
