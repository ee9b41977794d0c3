package standby_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A machine without a processor does not meet the faults of a TCG primary, so
// this runs where KVM does not.
func TestAMachineWithoutAProcessor(t *testing.T) {
	require.Program(t, require.QEMU, qemutest.Binary)
	l, uri := qemutest.Listen(t)
	dir := qemutest.Dir(t)
	p := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, "none", 8)...)
	p.Protect(uri, 10*time.Millisecond)
	x := accept(t, l, options{})
	x.await(qemutest.Rounds())
	p.Kill()
	if err := x.wait(); err != nil {
		t.Fatal(err)
	}
	back := qemutest.Dir(t)
	q := qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "none", 8), "-incoming", "exec:cat "+x.stream())...)
	for end := time.Now().Add(time.Minute); q.RunState() != "running"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is %s", q.RunState())
		}
	}
}

// A standby takes the guest's memory and the largest checkpoint, and what this
// process had before.
func TestAStandbyTakesNoMoreMemoryThanTheGuest(t *testing.T) {
	qemutest.KVM(t)
	const megabytes, pages = 256, 20000
	l, uri := qemutest.Listen(t)
	dir := qemutest.Dir(t)
	p := qemutest.Start(t, dir, qemutest.FirmwareArgs(t, dir, "microvm", megabytes, qemutest.Firmware(pages, 1))...)
	qemutest.AwaitSerial(t, dir, 1)
	p.Must("stop", nil)
	before := resident(t)
	p.Protect(uri, 50*time.Millisecond)
	x := accept(t, l, options{})
	x.await(5)
	p.Kill()
	x.wait()
	took := resident(t) - before
	const limit = megabytes<<20*11/10 + pages*ram.PageSize
	t.Logf("%d MB for a guest of %d MB that uses %d MB", took>>20, megabytes, pages*ram.PageSize>>20)
	if took > limit {
		t.Errorf("%d MB, at most %d", took>>20, limit>>20)
	}
}

// resident returns the memory of this process, in bytes.
func resident(t *testing.T) int {
	t.Helper()
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	_, rest, _ := strings.Cut(string(p), "VmRSS:")
	n := 0
	for _, c := range strings.TrimSpace(rest) {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n << 10
}
