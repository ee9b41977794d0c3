package main

import "testing"

func TestTheEndOfASessionIsSaidInPlainWords(t *testing.T) {
	for why, want := range map[string]string{
		"colo: secondary: checkpoint 382: wait: qemufile: read at offset 20893152: EOF":                            "the primary closed the connection, after checkpoint 382",
		"colo: secondary: checkpoint 4: wait: qemufile: read at offset 9: read tcp a->b: connection reset by peer": "the primary closed the connection, after checkpoint 4",
		"colo: secondary: checkpoint 7: expect vmstate-size: qemufile: read at offset 9: read tcp: i/o timeout":    "the primary is silent, after checkpoint 7",
		"colo: secondary: checkpoint 7: device state: not a section":                                               "colo: secondary: checkpoint 7: device state: not a section",
	} {
		if got := plain(why); got != want {
			t.Errorf("%s: %q, want %q", why, got, want)
		}
	}
}
