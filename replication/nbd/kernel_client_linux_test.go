package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// kernelClient is the NBD client of the Linux kernel: a block device.
type kernelClient struct {
	t    testing.TB
	name string
	dev  *os.File
	done chan error // has the error of the thread that serves the device
}

// kernelsClient makes a device of an export, over some connections, until the test ends. It skips the
// test where the kernel has no such client.
func kernelsClient(t testing.TB, device int, path, name string, conns int) *kernelClient {
	t.Helper()
	k := &kernelClient{t: t, name: fmt.Sprintf("/dev/nbd%d", device), done: make(chan error, 1)}
	var err error
	if k.dev, err = os.OpenFile(k.name, os.O_RDWR, 0); err != nil {
		t.Skipf("needs the kernel's module nbd: %v", err)
	}
	ends := []*os.File{k.dev}
	var size int64
	runtime.LockOSThread() // the kernel takes the connections of a device from one thread only
	for range conns {
		end, n, flags := chosen(t, path, name)
		ends, size = append(ends, end), n
		k.ioctl("NBD_SET_SOCK", 0xab00, end.Fd())
		k.ioctl("NBD_SET_FLAGS", 0xab0a, uintptr(flags))
	}
	runtime.UnlockOSThread()
	k.ioctl("NBD_SET_BLKSIZE", 0xab01, 512)
	k.ioctl("NBD_SET_SIZE_BLOCKS", 0xab07, uintptr(size/512))
	k.ioctl("NBD_SET_TIMEOUT", 0xab09, 30)
	go func() { k.done <- k.try("NBD_DO_IT", 0xab03, 0) }()
	t.Cleanup(func() {
		if err := k.try("NBD_DISCONNECT", 0xab08, 0); err != nil && !errors.Is(err, unix.EINVAL) { // nothing is connected any more
			t.Error(err)
		}
		if k.done != nil {
			<-k.done
		}
		k.ioctl("NBD_CLEAR_SOCK", 0xab04, 0)
		for _, f := range ends {
			f.Close()
		}
	})
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var have int64
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, k.dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&have))); errno == 0 && have == size {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%s has %d bytes, want %d", k.name, have, size)
		}
	}
	return k
}

// chosen negotiates as the oldest clients do, and returns the connection for the kernel.
func chosen(t testing.TB, path, name string) (end *os.File, size int64, flags uint16) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	must(t, err)
	defer conn.Close()
	var hello [18]byte
	_, err = io.ReadFull(conn, hello[:])
	must(t, err)
	be := binary.BigEndian
	ask := be.AppendUint32(nil, 3) // NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES
	ask = append(ask, "IHAVEOPT"...)
	ask = be.AppendUint32(ask, 1) // NBD_OPT_EXPORT_NAME
	ask = append(be.AppendUint32(ask, uint32(len(name))), name...)
	_, err = conn.Write(ask)
	must(t, err)
	var answer [10]byte
	_, err = io.ReadFull(conn, answer[:])
	must(t, err)
	end, err = conn.(*net.UnixConn).File()
	must(t, err)
	return end, int64(be.Uint64(answer[:])), be.Uint16(answer[8:])
}

func (k *kernelClient) try(name string, request, arg uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, k.dev.Fd(), request, arg); errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}

func (k *kernelClient) ioctl(name string, request, arg uintptr) {
	k.t.Helper()
	must(k.t, k.try(name, request, arg))
}

// open opens the device once more. Direct: nothing stays in the kernel's cache.
func (k *kernelClient) open(direct bool) *os.File {
	k.t.Helper()
	how := os.O_RDWR
	if direct {
		how |= unix.O_DIRECT
	}
	f, err := os.OpenFile(k.name, how, 0)
	must(k.t, err)
	return f
}

// contents reads the whole device past the kernel's cache.
func (k *kernelClient) contents(size int) []byte {
	k.t.Helper()
	f := k.open(true)
	defer f.Close()
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(k.t, err)
	defer unix.Munmap(p)
	_, err = io.ReadFull(f, p)
	must(k.t, err)
	return bytes.Clone(p)
}

// region is a part of a device that one goroutine reads and writes, and what it holds.
type region struct {
	dev    *os.File
	off    int64
	holds  []byte
	page   []byte // aligned, as direct access wants
	rng    *rand.Rand
	rounds atomic.Int64
}

// round does one thing to the region. The error is the kernel's.
func (g *region) round() error {
	defer g.rounds.Add(1)
	n := (1 + g.rng.IntN(16)) * 4096
	at := g.rng.IntN((len(g.holds)-n)/4096+1) * 4096
	all := func(request uintptr) error {
		r := [2]uint64{uint64(g.off) + uint64(at), uint64(n)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, g.dev.Fd(), request, uintptr(unsafe.Pointer(&r))); errno != 0 {
			return errno
		}
		clear(g.holds[at : at+n])
		return nil
	}
	switch g.rng.IntN(8) {
	case 0:
		return all(unix.BLKDISCARD)
	case 1:
		return all(unix.BLKZEROOUT)
	case 2:
		return g.dev.Sync()
	case 3, 4:
		if _, err := g.dev.ReadAt(g.page[:n], g.off+int64(at)); err != nil {
			return err
		}
		if !bytes.Equal(g.page[:n], g.holds[at:at+n]) {
			return fmt.Errorf("%d bytes at %d are not what was written", n, g.off+int64(at))
		}
	default:
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(g.page[i:], g.rng.Uint64())
		}
		if _, err := g.dev.WriteAt(g.page[:n], g.off+int64(at)); err != nil {
			return err
		}
		copy(g.holds[at:], g.page[:n])
	}
	return nil
}

// regions cuts a device, each part with access of its own kind.
func (k *kernelClient) regions(size, n int) (all []*region) {
	for i := range n {
		g := &region{dev: k.open(i%2 == 0), off: int64(i * size / n), holds: make([]byte, size/n), rng: rand.New(rand.NewPCG(uint64(i), 5))}
		var err error
		g.page, err = unix.Mmap(-1, 0, 16*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		must(k.t, err)
		k.t.Cleanup(func() { g.dev.Close(); unix.Munmap(g.page) })
		all = append(all, g)
	}
	return all
}

// work has all regions be used at once while meanwhile runs, and until then it returns.
func work(t testing.TB, all []*region, meanwhile func()) {
	t.Helper()
	var stop atomic.Bool
	var running sync.WaitGroup
	for i, g := range all {
		running.Go(func() {
			for !stop.Load() {
				if err := g.round(); err != nil {
					t.Errorf("region %d: %v", i, err)
					return
				}
			}
		})
	}
	defer running.Wait()
	defer stop.Store(true)
	meanwhile()
}

// more waits until each region has been used some times more.
func more(t testing.TB, all []*region, times int64) {
	t.Helper()
	for _, g := range all {
		for until := g.rounds.Load() + times; g.rounds.Load() < until && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
}

// written is what the regions hold, as one disk.
func written(t testing.TB, all []*region) (whole []byte) {
	t.Helper()
	for _, g := range all {
		must(t, g.dev.Sync())
		whole = append(whole, g.holds...)
	}
	return whole
}

// The Linux kernel's client, over several connections, writes to a disk while checkpoints are made: both sides have
// what it wrote. When the primary's host is gone it finds the disk of the last checkpoint at the other, to which it
// writes on. An export that ends under it fails its requests, and holds up neither.
func TestTheKernelsClientFindsItsDiskAtTheOtherHost(t *testing.T) {
	const size = 8 << 20
	dir := t.TempDir()
	local, err := replication.CreateFile(filepath.Join(dir, "local"), size)
	must(t, err)
	defer local.Close()
	far, err := replication.CreateFile(filepath.Join(dir, "far"), size)
	must(t, err)
	defer far.Close()
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{Overwrite: true})
	must(t, err)
	s, err := replication.NewSecondary(far, replication.SecondaryConfig{Blank: true})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	defer run.Wait()
	defer cancel()
	run.Go(func() { p.Run(ctx) })

	_, link, _ := export(t, nbd.ExportConfig{Disk: s.Export()})
	r, err := nbd.Dial(ctx, "unix", link, nbd.ClientConfig{})
	must(t, err)
	must(t, p.Attach(r))
	disk, path, _ := export(t, nbd.ExportConfig{Name: "d", Disk: p, MaxClients: 4})
	k := kernelsClient(t, 0, path, "d", 4)
	all := k.regions(size, 4)

	checkpoint := func(epoch uint64) {
		t.Helper()
		must(t, p.Mark(ctx, epoch))
		if epoch == 0 {
			must(t, s.Start(ctx))
		} else {
			must(t, s.Checkpoint(ctx, epoch))
		}
		must(t, p.Loaded(ctx, epoch))
	}
	work(t, all, func() {
		more(t, all, 20)
		must(t, p.Synchronise(ctx, replication.SyncConfig{}))
		checkpoint(0)
		must(t, p.Start(ctx))
		for epoch := range uint64(20) {
			more(t, all, 5)
			checkpoint(1 + epoch)
		}
	})
	want := written(t, all)
	checkpoint(21)
	for side, d := range map[string]*replication.File{"primary": local, "secondary": far} {
		if !bytes.Equal(contents(t, d, len(want)), want) {
			t.Errorf("the disk of the %s is not what was written", side)
		}
	}
	if !bytes.Equal(k.contents(len(want)), want) {
		t.Error("the kernel reads what it has not written")
	}

	// What comes after the last checkpoint is not the survivor's.
	work(t, all, func() {
		more(t, all, 20)
		must(t, r.Close())
		must(t, s.Stop(ctx, true))
	})
	_, path, _ = export(t, nbd.ExportConfig{Name: "d", Disk: s, MaxClients: 2})
	other := kernelsClient(t, 1, path, "d", 2)
	if !bytes.Equal(other.contents(len(want)), want) {
		t.Error("the survivor's disk is not the one of the last checkpoint")
	}
	on := other.regions(size, 4)
	for _, g := range on {
		copy(g.holds, want[g.off:])
	}
	work(t, on, func() { more(t, on, 20) })
	if after := written(t, on); !bytes.Equal(contents(t, far, len(after)), after) {
		t.Error("the survivor's disk has not what was written afterwards")
	}

	// The kernel is told at once, and not by its timeout.
	var failed atomic.Int64
	var running sync.WaitGroup
	for _, g := range all {
		running.Go(func() {
			for g.round() == nil {
			}
			failed.Add(1)
		})
	}
	more(t, all, 5)
	must(t, disk.Close(ctx))
	running.Wait()
	select {
	case <-k.done:
		k.done = nil
	case <-time.After(20 * time.Second):
		t.Error("the kernel still has its connections")
	}
	if failed.Load() != int64(len(all)) {
		t.Errorf("%d of %d have failed", failed.Load(), len(all))
	}
}
