package linuxguest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestAGuestAloneIsTypedTo(t *testing.T) {
	k := needKit(t, "qemu-system-x86_64")
	w := newWorld(t, k)
	guest, host, echo := filepath.Join(w.dir, "guest.cpio"), filepath.Join(w.dir, "host.cpio"), filepath.Join(w.dir, "echo.cpio")
	w.must(errors.Join(k.GuestArchive(guest), k.HostArchive(host, guest), k.EchoArchive(echo)))
	archive := filepath.Join(w.dir, "boot.role")
	// What is typed before the guest listens is lost, as on any serial line.
	w.must(RoleArchive(archive, `
mkfifo /typed
/gokvm boot -mem 128M -vcpus 2 -kernel /guest/kernel -initrd /echo -append 'console=ttyS0 quiet panic=-1 rdinit=/init' </typed >/said 2>/dev/ttyS1 &
exec 3>/typed
until grep -q "guest: type" /said; do sleep 1; done
echo "a line for the guest" >&3
wait $!
echo "machine: gokvm ended with $?"
cat /said
`, map[string]string{"echo": echo}))
	m, err := StartMachine(MachineConfig{
		Name: "boot", Dir: w.dir, Memory: 768, Kernel: k.Kernel, Initrd: []string{host, archive}, TSC: w.tsc,
	})
	w.must(err)
	w.machines["boot"] = m
	ctx, cancel := context.WithTimeout(w.ctx, bootTime)
	defer cancel()
	w.must(m.Said(ctx, "guest: heard a line for the guest"))
	if !strings.Contains(m.Console(), "machine: gokvm ended with 0") {
		t.Error("gokvm has failed")
	}
	if want := "gokvm: ended: the guest switched itself off"; !strings.Contains(m.Events(), want) {
		t.Errorf("gokvm has not said %q", want)
	}
}
