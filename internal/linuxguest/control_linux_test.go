package linuxguest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// How often the guest of the control runs, and for how long each time: about as long as
// the guests of two vCPUs in the adapter's chains.
const (
	controlRuns = 2
	controlTime = 45 * time.Second
)

// The control for runs that the emulator spoils: the same guest, with two vCPUs, on the
// same emulated machine, but run by QEMU, with nobody who pauses it and nothing of this
// module. How many of its runs end by themselves is put beside ours; it fails nothing.
func TestTheSameGuestWithoutTheLibraryIsTheControl(t *testing.T) {
	k := needKit(t, "qemu-system-x86_64", "ldd")
	t.Parallel()
	w := newWorld(t, k)
	w.guestMemory = 128 << 20
	guest, host, unused := filepath.Join(w.dir, "guest.cpio"), filepath.Join(w.dir, "host.cpio"), filepath.Join(w.dir, "unused.cpio")
	w.must(errors.Join(k.TestGuestArchive(guest), k.GuestArchive(unused), k.HostArchive(host, unused)))
	disk := filepath.Join(w.dir, "disk")
	w.must(os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	files := map[string]string{"control/kernel": k.Kernel, "control/initrd": guest, "control/disk": disk}
	for to, from := range qemuFiles(t) {
		files[to] = from
	}
	archive := filepath.Join(w.dir, "control.role")
	w.must(RoleArchive(archive, sayAlive+fmt.Sprintf(`
for i in $(seq %d); do
	/qemu/ld.so --library-path /qemu /qemu/qemu -L /qemu -accel kvm -cpu host -smp 2 -m 128 -nodefaults -display none -no-reboot \
		-kernel /control/kernel -initrd /control/initrd -append 'console=ttyS0 quiet panic=-1 nokaslr cryptomgr.notests rdinit=/init LOCKSTEP_GUEST=1' \
		-drive file=/control/disk,if=virtio,format=raw -netdev hubport,id=n,hubid=0 -device virtio-net-pci,netdev=n,romfile= -serial stdio </dev/null >/said$i 2>&1 &
	pid=$!
	sleep %d
	if kill $pid 2>/dev/null; then echo "control: run $i went on"; else echo "control: run $i ended"; tail -n 20 /said$i; fi
	wait $pid
	echo "control: run $i said $(grep -c ^job /said$i) jobs"
done >/dev/ttyS1 2>&1
echo "machine: control ended"
`, controlRuns, int(controlTime/time.Second)), files))
	m, err := StartMachine(MachineConfig{
		Name: "control", Dir: w.dir, Memory: 3072, Emulator: k.Emulator, Kernel: k.Kernel, Initrd: []string{host, archive}, TSC: w.tsc,
		Monitor: filepath.Join(w.sockets, "control-monitor"),
		Pulse:   filepath.Join(w.sockets, "control-pulse"),
	})
	w.must(err)
	w.machines["control"] = m
	ctx, cancel := context.WithTimeout(w.ctx, controlRuns*controlTime+10*time.Minute)
	defer cancel()
	if err := w.saidAlive(ctx, m, "machine: control ended"); err != nil {
		t.Logf("the machine: %v", err) // the emulator's doing: there is nothing of ours
	}
	said := m.Events()
	wentOn, ended := strings.Count(said, " went on\n"), strings.Count(said, " ended\n")
	evidence := w.spoilt()
	t.Logf("CONTROL: %d runs of %v of the guest with two vCPUs and without the library: %d went on, %d ended by themselves; evidence %q",
		controlRuns, controlTime, wentOn, ended, evidence)
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "control: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	switch {
	case wentOn > 0 && !strings.Contains(said, "said "):
		t.Error("the control's guest has done nothing")
	case wentOn+ended == 0 && evidence != "":
		t.Skipf("the control has not run: %s", evidence)
	case wentOn+ended == 0:
		t.Errorf("the control has not run, and nothing says why; the machine's console ends with:\n%s", tail(m.Console(), 40))
	}
}

// qemuFiles returns QEMU and what it needs in a machine, by their names there.
func qemuFiles(t *testing.T) map[string]string {
	t.Helper()
	path := require.Program(t, linuxHosts, "qemu-system-x86_64")
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		require.Missing(t, linuxHosts, fmt.Errorf("ldd: %w", err))
	}
	files := map[string]string{"qemu/qemu": path}
	for line := range strings.Lines(string(bytes.TrimSpace(out))) {
		for _, f := range strings.Fields(line) {
			if !filepath.IsAbs(f) {
				continue
			}
			name := filepath.Base(f)
			if strings.HasPrefix(name, "ld-linux") {
				name = "ld.so"
			}
			files["qemu/"+name] = f
		}
	}
	for _, f := range []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot_dma.bin"} {
		if _, err := os.Stat(f); err != nil {
			require.Missing(t, linuxHosts, err)
		}
		files["qemu/"+filepath.Base(f)] = f
	}
	return files
}
