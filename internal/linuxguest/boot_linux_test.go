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
`+sayAlive+tellShutdowns(t, k)+`mkfifo /typed
/gokvm boot -mem 128M -vcpus 2 -kernel /guest/kernel -initrd /echo -append '`+guestArgs+`' </typed >/said 2>/dev/ttyS1 &
gokvm=$!
tail -f /said & # as much of the guest's console as there is, should it not end
exec 3>/typed
until grep -q "guest: type" /said; do sleep 1; done
echo "machine: types"
echo "a line for the guest" >&3
wait $gokvm
code=$?
`+toldShutdowns+`cat /said
echo "machine: gokvm ended with $code"
`, map[string]string{"echo": echo}))
	m, err := StartMachine(MachineConfig{
		Name: "boot", Dir: w.dir, Memory: 768, Emulator: k.Emulator, Kernel: k.Kernel, Initrd: []string{host, archive}, TSC: w.tsc,
		Monitor: filepath.Join(w.sockets, "boot-monitor"),
		Pulse:   filepath.Join(w.sockets, "boot-pulse"),
	})
	w.must(err)
	w.machines["boot"] = m
	ctx, cancel := context.WithTimeout(w.ctx, bootTime)
	defer cancel()
	for _, c := range []struct{ text, stands string }{
		{"machine: types", "the guest does not boot"},
		{"machine: gokvm ended with ", "the guest does not end"},
	} {
		if err := w.saidAlive(ctx, m, c.text); err != nil {
			w.stands("%s: %v", c.stands, err)
		}
	}
	if !strings.Contains(m.Console(), "guest: heard a line for the guest") {
		t.Error("the guest has not heard what was typed")
	}
	if !strings.Contains(m.Console(), "machine: gokvm ended with 0") {
		t.Error("gokvm has failed")
	}
	if want := "gokvm: ended: the guest switched itself off"; !strings.Contains(m.Events(), want) {
		t.Errorf("gokvm has not said %q", want)
	}
}
