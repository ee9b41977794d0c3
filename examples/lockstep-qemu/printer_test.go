package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestTheEndOfASessionIsSaidInPlainWords(t *testing.T) {
	for why, want := range map[string]string{
		"colo: secondary: checkpoint 382: wait: qemufile: read at offset 20893152: EOF":                                             "the primary closed the connection, after checkpoint 382",
		"colo: secondary: checkpoint 4: wait: qemufile: read at offset 9: read tcp a->b: connection reset by peer":                  "the primary closed the connection, after checkpoint 4",
		"colo: secondary: checkpoint 7: stage device state: expect vmstate-size: qemufile: read at offset 9: read tcp: i/o timeout": "the primary is silent, in checkpoint 7",
		"colo: secondary: checkpoint 8: send checkpoint-reply: qemufile: write at offset 88: write tcp a->b: write: broken pipe":    "the primary closed the connection, in checkpoint 8",
		"colo: secondary: checkpoint 8: send vmstate-loaded: qemufile: write at offset 88: write tcp a->b: write: broken pipe":      "the primary closed the connection, after checkpoint 8",
		"colo: secondary: checkpoint 0: receive state: qemufile: read at offset 4711: unexpected EOF":                               "the primary closed the connection, in the first copy of its memory",
		"colo: secondary: checkpoint 7: device state: not a section":                                                                "colo: secondary: checkpoint 7: device state: not a section",
	} {
		if got := plainly(why); got != want {
			t.Errorf("%s: %q, want %q", why, got, want)
		}
	}
}

// Were it printed as it comes, a peer could have an operator's terminal show what it likes.
func TestWhatAPeerSaysCannotFeignAnotherLine(t *testing.T) {
	var out, err bytes.Buffer
	p := &printer{terminal: terminal{out: &out, err: &err}}
	const said = "gone\nback        after 3 ms\x1b[2J"
	p.say("lost        %s", said)
	p.say("            %s", asIs("a command\nof two lines"))
	p.warn("control channel: %v", errors.New(said))
	if got, want := out.String(), "lost        gone; back        after 3 ms\\x1b[2J\n            a command\nof two lines\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := err.String(), "lockstep-qemu: control channel: gone; back        after 3 ms\\x1b[2J\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
