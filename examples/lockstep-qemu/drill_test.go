package main

import (
	"bytes"
	"strings"
	"testing"
)

// A QEMU that does not take what it is given, or finds no KVM, is not waited for.
func TestADrillWhoseQEMUEndsSaysSo(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	var out, err bytes.Buffer
	status := run(t.Context(), []string{"drill", "-qemu", "false"}, terminal{out: &out, err: &err})
	if want := "waiting for the guest to count: its QEMU has ended: exit status 1"; status != exitFailed || !strings.Contains(err.String(), want) {
		t.Errorf("status %d, %q, %q", status, out.String(), err.String())
	}
}
