package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// What a new QEMU has in its memory already is overwritten, also by zeros, and the
// rest is as if every page had been sent.
func TestAGuestIsTheSameInAQEMUWhoseMemoryIsNotAllNew(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	const mb = 128
	src := qemutest.Dir(t)
	v := qemutest.Start(t, src, qemutest.GuestArgs(t, src, "pc", mb)...)
	qemutest.AwaitSerial(t, src, 3)
	file := filepath.Join(src, "state")
	v.Must("migrate", qemutest.Args{"uri": "exec:cat >" + file})
	for v.Must("query-migrate", nil)["status"] != "completed" {
		time.Sleep(5 * time.Millisecond)
	}
	g := guestIn(t, file)
	want := make([]byte, mb<<20)
	if err := g.ReadRAM("pc.ram", 0, want); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		args  []string
		known bool // which pages it has used
		least int
	}{
		"its own memory": {nil, true, 3},
		// Taken whole beforehand.
		"memory that is there":  {[]string{"-mem-prealloc"}, true, mb << 20 / ram.PageSize},
		"memory that is a file": {[]string{"-mem-path", src}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := qemutest.Dir(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			sock := filepath.Join(dir, "qmp")
			args := append(qemutest.GuestArgs(t, dir, "pc", mb), "-S", "-incoming", "fd:3", "-qmp", "unix:"+sock+",server=on,wait=off")
			q := &process{cmd: exec.Command(qemutest.Binary, append(args, c.args...)...), qmp: "unix:" + sock, done: make(chan struct{})}
			q.cmd.ExtraFiles = []*os.File{r}
			var said bytes.Buffer
			q.cmd.Stderr = &said
			err = q.cmd.Start()
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			go func() { q.cmd.Wait(); close(q.done) }()
			defer func() { q.cmd.Process.Kill(); <-q.done }()

			// What it has used by itself, and more.
			fresh, apart := q.fresh(w), true
			err = g.PutFresh(qemufile.NewWriter(w), func(block string, pages int) ram.Bitmap {
				if block == "pc.ram" {
					q.reads(w)
					apart = q.scribble(t, uint64(pages)*ram.PageSize, 0, 1<<20, 100<<20, mb<<20-ram.PageSize)
				}
				used := fresh(block, pages)
				if block == "pc.ram" && ((used != nil) != (c.known && apart) || used != nil && used.Count() < c.least) {
					t.Errorf("%d pages of it are known as used (%t)", used.Count(), used != nil)
				}
				return used
			})
			if err != nil {
				t.Fatalf("%v; %s", err, said.String())
			}
			monitor := qemutest.Monitor(t, sock)
			defer monitor.Close()
			for state := "inmigrate"; state == "inmigrate"; time.Sleep(5 * time.Millisecond) {
				var st struct{ Status string }
				if err := monitor.Do(t.Context(), "query-status", nil, &st); err != nil {
					t.Fatalf("%v; %s", err, said.String())
				}
				state = st.Status
			}
			dump := filepath.Join(dir, "memory")
			if err := monitor.Do(t.Context(), "pmemsave", map[string]any{"val": 0, "size": mb << 20, "filename": dump}, nil); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dump)
			if err != nil || len(got) != len(want) {
				t.Fatal(len(got), err)
			}
			for i := 0; i < len(got); i += ram.PageSize {
				// From 640 kB to 1 MB there are other things than pc.ram.
				if (i < 0xa0000 || i >= 1<<20) && !bytes.Equal(got[i:i+ram.PageSize], want[i:i+ram.PageSize]) {
					t.Fatalf("the page at %#x differs", i)
				}
			}
		})
	}
}

// scribble writes to a block of the process at offsets. It returns false if the block
// is not found, because the kernel has made one mapping of it and what is next to it,
// which it does now and then.
func (q *process) scribble(t *testing.T, length uint64, offsets ...uint64) bool {
	t.Helper()
	maps := q.maps()
	i := slices.IndexFunc(maps, func(x span) bool { return x.end-x.start == length })
	if i < 0 {
		return false
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", maps[i].pid), os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for _, off := range offsets {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, ram.PageSize), int64(maps[i].start+off)); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

// A QEMU that does not wait for its guest yet may still put something into its memory.
func TestTheMemoryOfAQEMUIsKnownOnlyWhenItWaitsForItsGuest(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	q := &process{qmp: m.addr, done: make(chan struct{})}
	for _, c := range []struct {
		state string
		known bool
	}{{"inmigrate", true}, {"prelaunch", false}, {"running", false}} {
		m.mu.Lock()
		m.state = c.state
		m.mu.Unlock()
		if got := q.maps(); (len(got) > 0) != c.known {
			t.Errorf("%s: %d spans", c.state, len(got))
		}
	}
	// Nor is one that does not answer, and ends.
	q.qmp = "unix:" + filepath.Join(qemutest.Dir(t), "silent")
	l, _, err := listen(q.qmp)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	close(q.done)
	if got := q.maps(); got != nil {
		t.Errorf("silent: %d spans", len(got))
	}
}

// pagemap is one of a process that has used some of its pages.
type pagemap map[uint64]uint64

func (m pagemap) ReadAt(p []byte, off int64) (int, error) {
	for i := 0; i < len(p); i += 8 {
		binary.NativeEndian.PutUint64(p[i:], m[uint64(off)/8+uint64(i/8)])
	}
	return len(p), nil
}

func TestPagesAreTakenForUnusedOnlyWhereTheKernelSaysSo(t *testing.T) {
	const (
		block   = "7f0000010000-7f0000020000 rw-p 00000000 00:00 0 \n" // of 16 pages
		pages   = 16
		present = uint64(1) << 63
		swapped = uint64(1) << 62
	)
	for _, c := range []struct {
		name string
		maps string
		used pagemap
		want []int // nil: not known
	}{
		{"none", block, nil, []int{}},
		{"some, in memory and in swap", block, pagemap{0x7f0000010: present, 0x7f0000013: swapped, 0x7f000001f: present, 0x7f0000020: present}, []int{0, 3, 15}},
		{"a flag that is of no use", block, pagemap{0x7f0000010: 1 << 55}, []int{}},
		{"with a name", strings.TrimSpace(block) + "      [anon:ram]\n", nil, []int{}},
		{"of two of that size", block + "7f0000030000-7f0000040000 rw-p 00000000 00:00 0\n", pagemap{0x7f0000011: present, 0x7f0000032: present}, []int{1, 2}},
		{"between guards", "7f0000000000-7f0000010000 ---p 00000000 00:00 0\n" + block + "7f0000020000-7f0000021000 ---p 00000000 00:00 0\n", nil, []int{}},
		{"in two parts", "7f0000010000-7f0000014000 rw-p 00000000 00:00 0\n7f0000014000-7f0000020000 r--p 00000000 00:00 0\n", pagemap{0x7f0000014: present}, []int{4}},
		{"beside what is longer and unused", block + "7f1000000000-7f1000020000 rw-p 00000000 00:00 0\n", nil, []int{}},
		{"beside what is longer and used", block + "7f1000000000-7f1000020000 rw-p 00000000 00:00 0\n", pagemap{0x7f1000000: present}, nil},
		{"within what is longer", "7f1000000000-7f1000020000 rw-p 00000000 00:00 0\n", nil, nil},
		{"beside another file", block + "7f1000000000-7f1000010000 rw-p 00000000 00:1a 77 /dev/shm/ram\n", nil, nil},
		{"of a file", "7f1000000000-7f1000010000 rw-p 00000000 00:1a 77 /dev/shm/ram\n", nil, nil},
		{"that are shared", "7f1000000000-7f1000010000 rw-s 00000000 00:01 1026 /dev/zero (deleted)\n", nil, nil},
		{"next to a file", block + "7f0000020000-7f0000021000 r--p 00000000 08:01 99 /lib/x.so\n", pagemap{0x7f0000020: present}, []int{}},
		{"right after other memory", "7f0000004000-7f0000010000 rw-p 00000000 00:00 0\n" + block, pagemap{0x7f0000004: present, 0x7f0000011: present}, []int{1}},
		{"right before other memory", block + "7f0000020000-7f0000024000 rw-s 00000000 00:00 0\n", pagemap{0x7f0000012: present, 0x7f0000020: present}, []int{2}},
		{"right before what is longer and used", block + "7f0000020000-7f0000040000 rw-p 00000000 00:00 0\n", pagemap{0x7f0000020: present}, nil},
		{"within what touches and is longer", "7f0000010000-7f000001c000 rw-p 00000000 00:00 0\n7f000001c000-7f0000028000 r--p 00000000 00:00 0\n", pagemap{0x7f000001c: present}, nil},
		{"of nothing", "7f0000010000-7f0000011000 rw-p 00000000 00:00 0\n", nil, nil},
		{"of words that are not maps", "what\n", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := usedPages(spans(strings.NewReader(c.maps), 1), c.used, pages)
			if (got == nil) != (c.want == nil) {
				t.Fatalf("known: %t", got != nil)
			}
			if list := slices.Collect(got.All()); !slices.Equal(list, c.want) && len(list)+len(c.want) > 0 {
				t.Errorf("used: %v, not %v", list, c.want)
			}
		})
	}
}
