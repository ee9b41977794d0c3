package trial

import "testing"

func TestTheOtherSidesHandlesAreBesideTheFirsts(t *testing.T) {
	const wrong = "!"
	for _, c := range []struct {
		of         func(addr, side string) (string, error)
		addr, side string
		want       string
	}{
		{MonitorOf, "", Secondary, ""},
		{MonitorOf, "unix:/tmp/m", Primary, "unix:/tmp/m"},
		{MonitorOf, "unix:/tmp/m", Secondary, "unix:/tmp/m.secondary"},
		{MonitorOf, "unix:/tmp/m", hostA, "unix:/tmp/m"},
		{MonitorOf, "unix:/tmp/m", hostB, "unix:/tmp/m.b"},
		{MonitorOf, "localhost:4444", Secondary, "localhost:4445"},
		{MonitorOf, "[::1]:4444", hostB, "[::1]:4445"},
		{MonitorOf, "localhost:0", Secondary, "localhost:0"},
		{MonitorOf, "localhost:65535", Secondary, wrong},
		{MonitorOf, "localhost:x", Secondary, wrong},
		{MonitorOf, "m", Secondary, wrong}, // a word is more likely a mistake than a file here
		{MonitorOf, "./m", Secondary, "unix:./m.secondary"},
		{MonitorOf, "unix:", Secondary, wrong},
		{PageOf, "", Secondary, ""},
		{PageOf, "8080", Primary, "8080"},
		{PageOf, "8080", Secondary, "8081"},
		{PageOf, ":8080", hostB, ":8081"},
		{PageOf, "[::1]:8080", hostB, "[::1]:8081"},
		{PageOf, "0", Secondary, "0"},
		{PageOf, "localhost:0", hostB, "localhost:0"},
		{PageOf, "65535", Secondary, wrong},
		{PageOf, "localhost:", Secondary, wrong},
		{PageOf, "localhost", Primary, wrong},
		{PageOf, "70000", Primary, wrong},
	} {
		got, err := c.of(c.addr, c.side)
		if err != nil {
			got = wrong
		}
		if got != c.want {
			t.Errorf("%q of %s: %q, want %q", c.addr, c.side, got, c.want)
		}
	}
}
