package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event"
)

// The last chunk of an image may be one sector.
func TestALittleIsNotPrintedAsNothing(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	p.event(event.Record{Event: event.DiskVerified{Compared: 1 << 20, Different: 512, Undecided: 512}})
	p.event(event.Record{Event: event.DiskSynchronised{Copied: 512}})
	for _, text := range []string{"1024 KiB compared, 1 KiB differed, 0 KiB repaired, 1 KiB undecided", "1 KiB copied, 0 KiB were the same"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("it says %q, want %q", out.String(), text)
		}
	}
}
