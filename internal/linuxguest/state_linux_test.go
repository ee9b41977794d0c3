package linuxguest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// adapterTime is how long the tests of the adapter may take.
const adapterTime = 15 * time.Minute

// The tests of kvm/gokvmhost that need hardware virtualization and a Linux kernel
// run inside a machine, which has both: a Linux guest goes through chains of
// saving and loading, and is rolled back again and again. (The long form of these
// tests has more kinds of guests.)
func TestTheAdapterIsExactInsideAMachine(t *testing.T) {
	k := needKit(t, "qemu-system-x86_64")
	w := newWorld(t, k)
	w.vcpus = 2
	guest, host := filepath.Join(t.TempDir(), "guest.cpio"), filepath.Join(t.TempDir(), "host.cpio")
	w.must(errors.Join(k.GuestArchive(guest), k.HostArchive(host, guest)))
	// A directory of the kernel and of the modules that a guest needs.
	files := map[string]string{"gokvmhost.test": k.Binary("gokvmhost.test"), "linux/vmlinuz": k.Kernel}
	modules, err := k.GuestModules()
	w.must(err)
	for _, m := range modules {
		files["linux/"+filepath.Base(m)] = m
	}
	archive := filepath.Join(w.dir, "adapter.role")
	w.must(RoleArchive(archive, `
export LOCKSTEP_LINUX=/linux LOCKSTEP_REQUIRE=kvm TMPDIR=/tmp
/gokvmhost.test -test.v -test.short -test.run TestLinux -test.timeout 14m </dev/null >/dev/ttyS1 2>&1
echo "machine: tests ended with $?"
`, files))
	m, err := StartMachine(MachineConfig{
		Name: "adapter", Dir: w.dir, Memory: 3072, Kernel: k.Kernel, Initrd: []string{host, archive}, TSC: w.tsc,
	})
	w.must(err)
	w.machines["adapter"] = m
	ctx, cancel := context.WithTimeout(w.ctx, adapterTime)
	defer cancel()
	w.must(m.Said(ctx, "machine: tests ended with "))
	passed := 0
	for line := range strings.Lines(m.Events()) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "--- ") {
			t.Log(line)
			if strings.HasPrefix(line, "--- PASS") {
				passed++
			}
		}
	}
	if !strings.Contains(m.Console(), "machine: tests ended with 0") || passed == 0 {
		t.Errorf("the tests inside have failed; %d have passed", passed)
	}
}
