package main

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// The kernel accepts connections for a standby that hangs. A QEMU that waits for a word over one
// does nothing else meanwhile, and hears no order to give up.
func TestAStandbyWhoseDisksHangKeepsNoQEMU(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	dir := qemutest.Dir(t)
	sock := filepath.Join(dir, "nbd")
	l, err := net.Listen("unix", sock) // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, "none", 0)...)
	o := &protectOptions{nbd: "unix:" + sock, disks: []mirrored{{"d", "disk0"}}}
	err = o.mirror(t.Context(), v.Client, &printer{terminal: terminal{out: io.Discard, err: io.Discard}})
	if err == nil || !strings.Contains(err.Error(), "does the standby hang?") {
		t.Errorf("it has copied to nobody: %v", err)
	}
	v.Must("query-status", nil)
}
