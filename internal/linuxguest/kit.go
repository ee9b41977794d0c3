package linuxguest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Kit is a directory with what machines and guests are made of:
//
//	root/      Debian's kernel (linux-image-*-cloud-amd64) and busybox-static, unpacked
//	bin/gokvm  examples/lockstep-gokvm
//	bin/jobs   internal/linuxguest/jobs
//	bin/gokvmhost.test  the tests of kvm/gokvmhost
//	bin/kvm.test        the tests of kvm
//	bin/pc.test         the tests of kvm/pc
//	bin/lockstep.test   the tests of examples/lockstep
//	bin/nbd.test        the tests of replication/nbd
//	bin/qemu            examples/lockstep-qemu
//
// all of the programs linked statically, and perhaps
//
//	bin/emulator        the QEMU that emulates machines, in place of the host's own
type Kit struct {
	dir      string
	Kernel   string // of machines and guest alike
	Emulator string // a MachineConfig's
	modules  *Modules
}

// OpenKit looks at what is there.
func OpenKit(dir string) (*Kit, error) {
	k := &Kit{dir: dir}
	kernels, err := filepath.Glob(filepath.Join(dir, "root/boot/vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(kernels) != 1 {
		return nil, fmt.Errorf("%s: %d kernels, want one", filepath.Join(dir, "root/boot"), len(kernels))
	}
	k.Kernel = kernels[0]
	if emulator := k.Binary("emulator"); isFile(emulator) {
		k.Emulator = emulator
	}
	_, version, _ := strings.Cut(filepath.Base(k.Kernel), "-")
	for _, lib := range []string{"root/lib/modules", "root/usr/lib/modules"} {
		k.modules, err = FindModules(filepath.Join(dir, lib, version))
		if err == nil {
			break
		}
	}
	return k, err
}

// Binary returns the path of one of the programs.
func (k *Kit) Binary(name string) string { return filepath.Join(k.dir, "bin", name) }

func isFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (k *Kit) busybox() (string, error) {
	for _, name := range []string{"root/bin/busybox", "root/usr/bin/busybox"} {
		path := filepath.Join(k.dir, name)
		if isFile(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no busybox in %s/root", k.dir)
}

// common is the beginning of every init: a userland, its file systems, and the
// modules in an order that works.
const common = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do insmod /modules/$m || echo "init: $m cannot be loaded"; done
ip link set lo up
`

// The addresses of the guest's network.
const (
	GuestIP    = "10.77.0.2"
	ClientIP   = "10.77.0.1"
	GuestMAC   = "52:54:00:77:00:02"
	ReportPort = "7000"
	ChunkPort  = "7001"
)

// guestInit is the init script of the guest.
const guestInit = common + `
dmesg -n 3
mkdir -p /mnt
ip addr add ` + GuestIP + `/24 dev eth0
ip link set eth0 up
mount -t ext4 /dev/vda /mnt && echo "guest: up, $(grep -c ^processor /proc/cpuinfo) CPUs, clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
/jobs ` + ReportPort + ` ` + ChunkPort + ` /mnt/log
echo "guest: jobs ended with $?"
umount /mnt && echo "guest: unmounted"
poweroff -f
`

// echoInit is the init of a guest without devices, which answers one line.
const echoInit = common + `
echo "guest: type"
read line
echo "guest: heard $line"
poweroff -f
`

// MAC addresses of a machine's cards begin with these, by which its init knows
// them; the last byte is the machine's number.
const (
	clusterMACs = "52:54:00:66:00:0"
	bridgeMACs  = "52:54:00:78:00:0"
)

// machineUp is printed on the console of a machine before its role begins.
const machineUp = "machine: up"

// hostInit is the init script of a machine. It leaves the two network cards' names in
// $cluster and $guest, if it has them, and the machine's role to /role.
const hostInit = common + `
[ -e /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }
for i in /sys/class/net/*; do
	case $(cat $i/address) in
	` + clusterMACs + `?) cluster=${i##*/} ;;
	` + bridgeMACs + `?) guest=${i##*/} ;;
	` + pulseMAC + `) ip link set ${i##*/} up ;;
	esac
done
echo "` + machineUp + `"
. /role
sync
poweroff -f
`

func (k *Kit) archive(name string, init string, modules []string, more func(*Archive)) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := NewArchive(f)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "modules"} {
		a.Dir(d)
	}
	a.Console()
	busybox, err := k.busybox()
	if err != nil {
		return err
	}
	a.Copy("bin/busybox", busybox)
	a.File("init", []byte(init))
	files, err := k.modules.Order(modules...)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, file := range files {
		a.Copy("modules/"+filepath.Base(file), file)
		fmt.Fprintln(&order, filepath.Base(file))
	}
	a.File("modules/order", []byte(order.String()))
	more(a)
	return a.Close()
}

// guestModules drive the disk and the network card of a guest.
var guestModules = []string{"virtio_pci", "virtio_blk", "virtio_net"}

// GuestModules returns the files of the modules that a guest of the adapter's tests may
// need, in an order in which they can be loaded: those of its disks and network cards, and
// of an entropy device.
func (k *Kit) GuestModules() ([]string, error) {
	return k.modules.Order(append(slices.Clone(guestModules), "virtio_rng")...)
}

// GuestArchive writes the guest's initial RAM disk.
func (k *Kit) GuestArchive(name string) error {
	return k.archive(name, guestInit, guestModules, func(a *Archive) {
		a.Copy("jobs", k.Binary("jobs"))
	})
}

// TestGuestArchive writes the initial RAM disk of the guest that the adapter's tests run:
// their own binary is its init, and loads the modules.
func (k *Kit) TestGuestArchive(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := NewArchive(f)
	a.Dir("dev")
	a.Console()
	a.Dir("modules")
	a.Copy("init", k.Binary("gokvmhost.test"))
	files, err := k.GuestModules()
	if err != nil {
		return err
	}
	for _, file := range files {
		a.Copy("modules/"+filepath.Base(file), file)
	}
	return a.Close()
}

// EchoArchive writes the initial RAM disk of a guest that takes one line from its
// console, repeats it, and switches itself off.
func (k *Kit) EchoArchive(name string) error {
	return k.archive(name, echoInit, nil, func(*Archive) {})
}

// HostArchive writes a machine's initial RAM disk, with a guest for it to run.
func (k *Kit) HostArchive(name, guest string) error {
	return k.hostArchive(name, guest, map[string]string{"gokvm": k.Binary("gokvm")})
}

// QEMUHostArchive writes the initial RAM disk of a machine that runs the guest by a QEMU,
// whose files are given by their names there, and protects it by examples/lockstep-qemu.
func (k *Kit) QEMUHostArchive(name, guest string, files map[string]string) error {
	all := map[string]string{"qemu": k.Binary("qemu")}
	maps.Copy(all, files)
	return k.hostArchive(name, guest, all)
}

func (k *Kit) hostArchive(name, guest string, programs map[string]string) error {
	return k.archive(name, hostInit, []string{"kvm-amd", "virtio_pci", "virtio_blk", "virtio_net", "tun", "bridge", "nbd"}, func(a *Archive) {
		for _, to := range slices.Sorted(maps.Keys(programs)) {
			a.Copy(to, programs[to])
		}
		a.Copy("guest/kernel", k.Kernel)
		a.Copy("guest/initrd", guest)
	})
}

// RoleArchive writes what a machine is to do: a shell script, and files for it.
func RoleArchive(name, script string, files map[string]string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := NewArchive(f)
	a.File("role", []byte(script))
	for to, from := range files {
		a.Copy(to, from)
	}
	return a.Close()
}
