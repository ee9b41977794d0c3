package linuxguest

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// installedQEMU is QEMU and what it needs, by their names in a machine, which are those
// that they have here.
func installedQEMU(t *testing.T) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for to, from := range qemuFiles(t) {
		switch {
		case to == "qemu/qemu":
			files["usr/bin/qemu-system-x86_64"] = from
		case strings.HasSuffix(to, ".bin"):
			files["usr/share/qemu/"+filepath.Base(to)] = from
		default: // a library, where its loader looks for it
			files[strings.TrimPrefix(from, "/")] = from
		}
	}
	return files
}

// stockGuest returns the guest's QEMU, with a TAP interface, a disk and a file for what it says.
func stockGuest(tap, disk, said string) string {
	return `/usr/bin/qemu-system-x86_64 -accel kvm -cpu host -M pc -m 128 -nodefaults -display none -no-reboot ` +
		`-kernel /guest/kernel -initrd /guest/initrd -append '` + guestArgs + `' -serial file:` + said + ` ` +
		`-drive file=` + disk + `,format=raw,if=virtio -device virtio-net-pci,netdev=n0,romfile=,mac=` + GuestMAC + ` ` +
		`-netdev tap,id=n0,ifname=` + tap + `,script=no,downscript=no,vnet_hdr=off `
}

// heldOutput has what the guest sends wait for the checkpoint that has it: QEMU's
// colo-compare waits for a second guest's packets, of which there are none, and lets go of
// what it has whenever a secondary has a checkpoint. The guardian turns it on.
const heldOutput = `-object iothread,id=hold -chardev socket,id=none,path=/none,server=on,wait=off ` +
	`-chardev socket,id=held,path=/held,server=on,wait=off -chardev socket,id=held-in,path=/held ` +
	`-chardev socket,id=freed,path=/freed,server=on,wait=off -chardev socket,id=freed-out,path=/freed ` +
	`-object filter-redirector,id=free,netdev=n0,queue=rx,indev=freed ` +
	`-object filter-redirector,id=take,netdev=n0,queue=rx,outdev=held,status=off ` +
	`-object colo-compare,id=compare,primary_in=held-in,secondary_in=none,outdev=freed-out,iothread=hold `

// stockRole is the script of the machine on which all of it runs, each QEMU with a TAP interface
// of its own on the bridge and a disk. Whoever connects to killPort has the primary's QEMU
// killed, two seconds after its last checkpoint: the next one would be much later.
var stockRole = `
tunctl -t primary >/dev/null
tunctl -t standby >/dev/null
brctl addbr br0
echo 0 >/sys/class/net/br0/bridge/forward_delay
for i in $guest primary standby; do brctl addif br0 $i; ip link set $i up; done
ip addr add ` + stockIP + `/24 dev br0
ip link set br0 up
cat /dev/vda >/primary.img
` + stockGuest("primary", "/primary.img", "/said") + heldOutput + `-qmp unix:/qmp,server=on,wait=off -qmp tcp:127.0.0.1:9,server=on,wait=off -pidfile /pid -daemonize
until grep -q "guest: jobs run" /said; do sleep 0.2; done
cat /said >/dev/ttyS1
{
	nc -l -p ` + killPort + ` </dev/null
	{
		echo '{"execute": "qmp_capabilities"}'
		echo '{"execute": "migrate-set-parameters", "arguments": {"x-checkpoint-delay": 3600000}}'
		sleep 2
	} | nc 127.0.0.1 9
	kill -9 $(cat /pid) && echo "machine: killed"
} &
{ /qemu protect -stay -json -qmp /qmp -to tcp:127.0.0.1:9998 -control 127.0.0.1:9997 -insecure -nbd tcp:127.0.0.1:10809 \
	-disk virtio0=disk0 -state /guardian -delay 300ms -stall 1m -silence 1m; echo "machine: guardian ended with $?"; } &
/qemu standby -json -listen 127.0.0.1:9998 -control 127.0.0.1:9997 -insecure -nbd 127.0.0.1:10809 \
	-disk disk0=/dev/vda -state /state -peer-timeout 1m -- ` + stockGuest("standby", "/dev/vda", "/dev/ttyS1") + `
echo "machine: standby ended with $?"
`

// The machine on the guest's network.
const (
	stockIP  = "10.77.0.3"
	killPort = "99"
)

// A Linux guest of a stock QEMU, with a disk and a network, is protected by examples/lockstep-qemu and
// brought back when its QEMU is killed: its client's connections go on, and so do its disk's
// records. All of it runs on one machine.
func TestAGuestOfAStockQEMUOutlivesIt(t *testing.T) {
	k := needKit(t, "qemu-system-x86_64", "ldd", "mke2fs", "e2fsck", "debugfs")
	t.Parallel()
	w := newWorld(t, k)
	w.client()
	guest, host, role := filepath.Join(w.dir, "guest.cpio"), filepath.Join(w.dir, "host.cpio"), filepath.Join(w.dir, "role.cpio")
	w.must(errors.Join(k.GuestArchive(guest), k.QEMUHostArchive(host, guest, installedQEMU(t)), RoleArchive(role, sayAlive+tellShutdowns(t, k)+stockRole+toldShutdowns, nil)))
	disk := w.image("disk", true)
	m, err := StartMachine(MachineConfig{
		Name: "stock", Dir: w.dir, Memory: 1024, Emulator: k.Emulator, Kernel: k.Kernel, Initrd: []string{host, role}, TSC: w.tsc, Disk: disk,
		Ports: []string{w.port(&w.guests, "stock-guests")}, MACs: []string{bridgeMACs + "3"},
		Monitor: filepath.Join(w.sockets, "stock-monitor"),
		Pulse:   filepath.Join(w.sockets, "stock-pulse"),
	})
	w.must(err)
	w.machines["stock"] = m
	p := &pair{world: w, begun: time.Now()}
	ctx, cancel := p.unlessEnded(p.ctx, bootTime, m)
	defer cancel()
	p.said(ctx, "stock", "guest: jobs run")
	atWork := time.Since(p.begun)
	p.said(ctx, "stock", `{"protect":{"held":["take"]`)
	t.Logf("the guest at work %v after the machine was switched on, protected after %v", round(atWork), round(time.Since(p.begun)))
	p.client = NewClient(p.dial(ctx, GuestIP, ReportPort), p.dial(ctx, GuestIP, ChunkPort))
	p.done = make(chan error, 1)
	p.group.Go(func() { p.done <- p.client.Run(p.ctx) })
	p.work(Progress{}, m)

	before, err := p.client.Progress()
	p.must(err)
	held := p.client.Delays()
	p.client.Watch()
	p.dial(ctx, stockIP, killPort).Close()
	p.said(ctx, "stock", "machine: killed")
	p.said(ctx, "stock", `{"back":`)
	back, err := p.client.Progress()
	p.must(err)
	p.work(back, m)
	_, silence := p.client.Silence()
	t.Logf("killed after record %d; longest silence at the client %v", before.Record.Seq, round(silence))

	last := p.endWork(ctx)
	select {
	case <-m.Ended():
	case <-ctx.Done():
		p.stands("the machine does not end")
	}
	for _, said := range []string{"machine: standby ended with 0", "machine: guardian ended with 5"} {
		if !strings.Contains(m.Console(), said) {
			t.Errorf("the machine has not said %q", said)
		}
	}
	for _, said := range []string{"guest: jobs ended with 0", "guest: unmounted"} {
		if !strings.Contains(m.Events(), said) {
			t.Errorf("the guest has not said %q", said)
		}
	}
	entries, err := CheckLog(p.log(disk), last.Record.Synced)
	if err != nil {
		t.Error(err)
	}
	free := p.client.Delays()[len(held):]
	t.Logf("RUN %s (nested emulation): chunk answered after p50 %v with the output held, and p50 %v then; %d records, %d chunks, %d passes, %d of %d entries were known to be stable; %v in all",
		t.Name(), round(quantile(held, 0.5)), round(quantile(free, 0.5)),
		last.Record.Seq+1, last.Chunks, last.Record.Pass, last.Record.Synced, entries, round(time.Since(p.begun)))
}
