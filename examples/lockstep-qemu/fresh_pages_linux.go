package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// freshBlock is how large a RAM block must be for it to be worth asking the kernel
// which of its pages the QEMU has used, in bytes.
const freshBlock = 64 << 20

// fresh returns what tells of the pages that a new QEMU may have used: for
// standby.Copy.PutFresh, which has flushed the head of the stream into w. It knows
// nothing, and then says so, unless the kernel does: see usedPages.
func (q *process) fresh(w *os.File) func(block string, pages int) ram.Bitmap {
	var maps []span
	asked := false
	return func(_ string, pages int) ram.Bitmap {
		if uint64(pages)*ram.PageSize < freshBlock || os.Getpagesize() != ram.PageSize {
			return nil
		}
		if !asked {
			// A QEMU that reads its guest has put into memory what it puts there
			// by itself: firmware, and what a reset does. That somebody has read is
			// not enough, which may be a command that copies the pipe: see maps.
			asked = true
			if q.reads(w) {
				maps = q.maps()
			}
		}
		if maps == nil {
			return nil
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", maps[0].pid))
		if err != nil {
			return nil
		}
		defer f.Close()
		return usedPages(maps, f, pages)
	}
}

// reads waits until what is in the pipe has been read.
func (q *process) reads(w *os.File) bool {
	raw, err := w.SyscallConn()
	if err != nil {
		return false
	}
	for {
		var n int32
		var errno syscall.Errno
		err := raw.Control(func(fd uintptr) {
			_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&n)))
		})
		if err != nil || errno != 0 {
			return false
		}
		if n == 0 {
			return true
		}
		select {
		case <-q.done:
			return false
		case <-time.After(time.Millisecond):
		}
	}
}

// greets bounds the time until a QEMU that has read its guest greets a client of its monitor:
// it does not greet while it has another one.
const greets = 5 * time.Second

// maps returns the address space of the process that listens at the QEMU's monitor: the
// command after -- may be one that has started it. nil: there is none that waits for
// its guest. A QEMU answers its monitor when it has been reset, and not before.
func (q *process) maps() []span {
	ctx, cancel := context.WithTimeout(context.Background(), greets)
	defer cancel()
	go func() {
		select {
		case <-q.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", strings.TrimPrefix(q.qmp, "unix:"))
	if err != nil {
		return nil
	}
	defer conn.Close()
	pid, err := listenerOf(conn.(*net.UnixConn))
	if err != nil {
		return nil
	}
	m, err := qmp.NewClient(ctx, conn)
	if err != nil {
		return nil
	}
	var st struct{ Status string }
	if err := m.Do(ctx, "query-status", nil, &st); err != nil || st.Status != "inmigrate" {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	return spans(f, pid)
}

// span is memory of a process without a gap: a mapping, or several that touch.
type span struct {
	pid        int
	start, end uint64
	anonymous  bool // private to the process, and zeros where it has not been used
}

// spans reads a maps file of /proc, without what nobody can use; nil: it cannot.
func spans(r io.Reader, pid int) (list []span) {
	for s := bufio.NewScanner(r); s.Scan(); {
		x := span{pid: pid}
		var perms, device string
		var offset, inode uint64
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s %x %s %d", &x.start, &x.end, &perms, &offset, &device, &inode); err != nil || len(perms) < 4 {
			return nil
		}
		if strings.HasPrefix(perms, "---") { // a guard
			continue
		}
		x.anonymous = perms[3] == 'p' && inode == 0
		list = append(list, x)
	}
	return list
}

// joined makes one span of those that touch, since a block may be in several. One that
// is as long as the block is left as it is: the kernel puts other memory right next to
// a block now and then.
func joined(maps []span, length uint64) (list []span) {
	exact := func(x span) bool { return x.end-x.start == length }
	whole := false // the last of list is exact by itself
	for _, x := range maps {
		if n := len(list); n > 0 && list[n-1].end == x.start && !whole && !exact(x) {
			list[n-1].end = x.end
			list[n-1].anonymous = list[n-1].anonymous && x.anonymous
			continue
		}
		list, whole = append(list, x), exact(x)
	}
	return list
}

// usedPages returns the pages of a block that its process has used, wherever in its
// memory it is: those that were used in any span as long as the block. QEMU has
// guards around its blocks. nil: it may also lie in a longer span that has been used,
// or in memory whose unused pages need not be zeros, a file's or what is shared.
func usedPages(maps []span, pagemap io.ReaderAt, pages int) ram.Bitmap {
	length := uint64(pages) * ram.PageSize
	used := ram.NewBitmap(pages)
	found := false
	buf := make([]byte, 1<<20)
	for _, x := range joined(maps, length) {
		if x.end-x.start < length {
			continue
		}
		if !x.anonymous {
			return nil
		}
		exact := x.end-x.start == length
		found = found || exact
		for at, n := uint64(0), (x.end-x.start)/ram.PageSize; at < n; {
			part := buf[:min(uint64(len(buf)), 8*(n-at))]
			if _, err := pagemap.ReadAt(part, int64(8*(x.start/ram.PageSize+at))); err != nil {
				return nil
			}
			for ; len(part) > 0; part = part[8:] {
				const present, swapped = 1 << 63, 1 << 62
				if binary.NativeEndian.Uint64(part)&(present|swapped) != 0 {
					if !exact {
						return nil
					}
					used.Set(int(at))
				}
				at++
			}
		}
	}
	if !found {
		return nil
	}
	return used
}
