//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// growEnv on the command line has the guest tell how long its disk is, whenever that changes.
const growEnv = "LOCKSTEP_GROW"

// guestLengths tells how many sectors the kernel says that the first disk has.
func guestLengths(say func(string, ...any)) {
	for said := ""; ; time.Sleep(20 * time.Millisecond) {
		sectors, _ := os.ReadFile("/sys/block/vda/size")
		if is := strings.TrimSpace(string(sectors)); is != said {
			said = is
			say("length %s", is)
		}
	}
}

// A guest's kernel sees its disk become longer while it runs, and when it goes on after a pause in which that
// happened. Where it goes on elsewhere it has the disk that it was told of, and is told there of what it
// has not been told of.
func TestLinuxSeesItsDiskBecomeLonger(t *testing.T) {
	for i, k := range linuxKinds {
		if i == 0 {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLinux(t, k.vcpus, growEnv+"=1 "+k.cmdline)
			l.own = k.own
			here := l.boot()
			const sectors = diskBlocks * diskBlock / 512
			sees := func(p *place, n uint64) {
				l.what = fmt.Sprintf("a disk of %d sectors", n)
				l.await(p, l.what, func() bool { return l.console.last("length") == n })
			}
			grows := func(n int) {
				l.disk.Grow(n * 512)
				must(t, here.grown(int64(n)*512))
			}
			sees(here, sectors)
			grows(2 * sectors)
			sees(here, 2*sectors)
			must(t, here.Pause(t.Context()))
			grows(3 * sectors)
			must(t, here.Resume(t.Context()))
			sees(here, 3*sectors)

			must(t, here.Pause(t.Context()))
			here.halt()
			state, memory := here.save(), bytes.Clone(here.mem)
			disk := bytes.Clone(l.disk.Data)
			lines, part := l.console.mark()
			there := l.newPlace()
			copy(there.mem, memory)
			there.load(state)
			l.goOn(there)
			l.check()
			if n := l.console.last("length"); n != 3*sectors {
				l.fail(fmt.Sprintf("the guest that goes on elsewhere has %d sectors", n))
			}

			l.console.cut(lines, part)
			copy(l.disk.Data, disk)
			l.disk.Grow(4 * sectors * 512) // which the next place knows from its beginning
			later := l.newPlace()
			copy(later.mem, memory)
			later.load(state)
			later.run()
			must(t, later.Resume(t.Context()))
			sees(later, 4*sectors)
			l.check()
		})
	}
}
