//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/kvm"
)

// rebindEnv on the command line has the guest take its second disk and card from their drivers, and
// off the bus, after each turn.
const rebindEnv = "LOCKSTEP_REBIND"

// takeAway takes a device away from the guest's kernel and brings it back: it gives it to its driver
// again, and every other time the device leaves the PCI bus, which is then looked through. link is the
// device's, in the directory of what the driver made of it.
func takeAway(link, driver string, n uint64) error {
	at, err := filepath.EvalSymlinks(link)
	if err != nil {
		return err
	}
	order := func(file, text string) {
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0)
		}
	}
	if n%2 == 0 {
		order(filepath.Join(filepath.Dir(at), "remove"), "1")
		order("/sys/bus/pci/rescan", "1")
		return err
	}
	drivers := filepath.Join("/sys/bus/virtio/drivers", driver)
	order(filepath.Join(drivers, "unbind"), filepath.Base(at))
	order(filepath.Join(drivers, "bind"), filepath.Base(at))
	return err
}

// guestRebindsDisk is guestDisk for a disk that goes after each turn.
func guestRebindsDisk(say func(string, ...any)) error {
	buf, err := unix.Mmap(-1, 0, 2*diskBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	wrote, read := buf[:diskBlock], buf[diskBlock:]
	turn := func(n uint64) error {
		f, err := os.OpenFile("/dev/vdb", os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		off := int64(n%diskBlocks) * diskBlock
		if n > 1 { // what it wrote when it was there last
			before := int64((n-1)%diskBlocks) * diskBlock
			diskPattern(wrote, n-1)
			if _, err := f.ReadAt(read, before); err != nil || !bytes.Equal(read, wrote) {
				return fmt.Errorf("the block of turn %d is not what was written (%v)", n-1, err)
			}
		}
		diskPattern(wrote, n)
		if _, err := f.WriteAt(wrote, off); err != nil {
			return err
		}
		return f.Sync()
	}
	for n := uint64(1); ; n++ {
		if err := turn(n); err != nil {
			return err
		}
		say("disk2 %d", n)
		if err := takeAway("/sys/block/vdb/device", "virtio_blk", n); err != nil {
			return err
		}
	}
}

// guestRebindsNetwork is guestNetwork for a card that goes after each turn.
func guestRebindsNetwork(say func(string, ...any)) error {
	const name, protocol = "eth1", guestFrame>>8 | guestFrame&0xff<<8
	turn := func(n uint64) error {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if err := setUp(name); err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifc.Index}); err != nil {
			return err
		}
		out, in := make([]byte, frameLength), make([]byte, 2048)
		copy(out, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		copy(out[6:], ifc.HardwareAddr)
		binary.BigEndian.PutUint16(out[12:], guestFrame)
		binary.BigEndian.PutUint64(out[14:], n)
		if _, err := unix.Write(s, out); err != nil {
			return err
		}
		for {
			k, err := unix.Read(s, in)
			if err == nil && k >= 22 && binary.BigEndian.Uint64(in[14:]) == n {
				return nil
			}
			if err != nil && err != unix.EINTR {
				return err
			}
		}
	}
	for n := uint64(1); ; n++ {
		if err := turn(n); err != nil {
			return err
		}
		say("frame2 %d", n)
		if err := takeAway("/sys/class/net/"+name+"/device", "virtio_net", n); err != nil {
			return err
		}
	}
}

// A guest that takes devices from their drivers, and off the bus, and brings them back, is saved in the
// midst of that and goes on elsewhere: each device then works as it did.
func TestLinuxTakesItsDevicesAwayAndBackThrough20Generations(t *testing.T) {
	l := newLinux(t, 2, rebindEnv+"=1")
	l.own, l.more = true, true
	here, there := l.boot(), l.newPlace()
	must(t, here.VM().StartDirtyLog())
	must(t, here.Pause(t.Context()))
	here.halt()
	shadow := bytes.Clone(here.mem)
	there.stale = all(there.stale)
	before := l.turns()
	for g := 1; g <= 20; g++ {
		l.what = fmt.Sprintf("generation %d", g)
		l.goOn(here)
		state := here.save()
		here.take(shadow, there)
		there.put(shadow)
		there.load(state)
		must(t, there.VM().StartDirtyLog())
		must(t, there.VM().ReadDirty(kvm.RAMBlock, make([]uint64, len(there.stale))))
		there.same(shadow)
		here, there = there, here
	}
	l.what = "after the last generation"
	l.goOnWithAll(here)
	l.check()
	t.Logf("%d turns of each device in 20 generations", l.turns()-before)
}
