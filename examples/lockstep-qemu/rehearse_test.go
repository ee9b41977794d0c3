package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// rehearsal decodes the report of a standby on its n-th rehearsal.
func (p *program) rehearsal(n int) (r struct {
	Fits  bool
	Error string
}) {
	p.t.Helper()
	if err := json.Unmarshal(p.object("rehearsal", n), &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func TestARehearsalFindsOutWhetherTheCommandLineFits(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for machine, fits := range map[string]bool{"microvm": true, "pc": false} {
		t.Run(machine, func(t *testing.T) {
			dir, back := qemutest.Dir(t), qemutest.Dir(t)
			s := start(t, append([]string{"standby", "-json", "-rehearse", "-listen", "127.0.0.1:0", "-state", dir}, same(t, back, machine)...)...)
			p, seen := primary(t, "microvm")
			p.Protect(s.text("listening"), 20*time.Millisecond)
			r := s.rehearsal(0)
			if r.Fits != fits || (r.Error == "") != fits {
				t.Errorf("%+v", r)
			}
			if !fits && (!strings.Contains(r.Error, "exit status 1") || !strings.Contains(r.Error, "qemu-system-x86_64: ")) {
				t.Errorf("not QEMU's words: %q", r.Error)
			}
			s.further(3) // it goes on

			status := exitOK
			if !fits {
				status = exitFailed
			}
			start(t, "rehearse", "-standby", dir).ends(status) // by an order, too
			if again := s.rehearsal(1); again.Fits != fits {
				t.Errorf("%+v", again)
			}
			asked := start(t, "status", "-state", dir, "-json")
			asked.ends(exitOK)
			if out := asked.output(); !strings.Contains(out, `"rehearsal":"the QEMU after -- `) {
				t.Errorf("%s", out)
			}
			if list := qemutest.Serial(back); len(list) > 0 {
				t.Errorf("it ran: %#x", list)
			}
			s.further(2)
			p.Kill()
			if !fits {
				s.ends(exitGuest)
				return
			}
			s.object("back", 0)
			counts(t, back, seen[0])
			qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
			s.ends(exitOK)
		})
	}
}

// A QEMU that takes for ever to take the guest in holds nobody up when the primary
// is lost.
func TestARehearsalThatHangsIsNotInTheWay(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	tried := filepath.Join(dir, "tried")
	script := fmt.Sprintf(`if test -e %[1]s; then exec "$@"; fi; : >%[1]s; exec sleep 1000`, tried)
	qemu := slices.Insert(same(t, back, "microvm"), 1, "sh", "-c", script, "sh")
	s := start(t, append([]string{"standby", "-json", "-rehearse", "-listen", "127.0.0.1:0", "-state", dir}, qemu...)...)
	p, seen := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	awaitFile(t, tried)
	start(t, "rehearse", "-standby", dir).ends(exitFailed) // one is under way
	s.further(3)
	p.Kill()
	s.object("back", 0)
	if r := s.rehearsal(0); r.Fits || !strings.Contains(r.Error, "given up") {
		t.Errorf("%+v", r)
	}
	counts(t, back, seen[0])
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

// Whoever has ordered a rehearsal is told, and holds nobody up, when the standby ends.
func TestAStandbyEndsDuringARehearsalThatWasOrdered(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	tried := filepath.Join(dir, "tried")
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "--", "sh", "-c", ": >"+tried+"; exec sleep 1000", "sh")
	p, _ := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(1)
	ordered := start(t, "rehearse", "-standby", dir)
	awaitFile(t, tried)
	s.cancel()
	s.ends(exitInterrupted)
	ordered.ends(exitFailed)
}

func TestAQEMUThatWouldDoHarmIsNotRehearsed(t *testing.T) {
	for args, why := range map[string]string{
		"": "there is no QEMU",
		"qemu -m 64 -blockdev driver=raw,node-name=a,file.driver=file,file.filename=a": "-blockdev",
		"qemu --blockdev {}":                         "-blockdev",
		"qemu -daemonize":                            "-daemonize",
		"qemu -drive file=a,snapshot=off,format=raw": "would write to the disk",
		"qemu -drive snapshot=no,file=a":             "would write to the disk",
		"qemu -readconfig machine.cfg":               "-readconfig",
		"qemu -object memory-backend-file,id=m,size=64M,mem-path=/dev/shm/m,share=on": "others read it",
		"qemu -object memory-backend-memfd,share=yes,id=m,size=64M":                   "others read it",
		"qemu -object memory-backend-file,id=m,share,mem-path=m":                      "others read it",
		`qemu -object {"qom-type":"memory-backend-file","share":true,"id":"m"}`:       "others read it",
		`qemu -object {"id":"m","share":true}`:                                        "others read it",
	} {
		if err := unfit(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range []string{
		"qemu -m 64 -drive file=a,format=raw -name blockdev -nic tap,ifname=daemonize",
		"share=on -drive file=share,snapshot=on -device virtio-blk-pci,share-rw=on -name share",
		`qemu -object memory-backend-file,id=m,share=off,mem-path=m -object {"id":"n","share":false}`,
	} {
		if err := unfit(strings.Fields(args)); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestTheEndOfAQEMUsWordsIsKept(t *testing.T) {
	var l lastWords
	if got := l.String(); got != "it has printed nothing" {
		t.Errorf("%q", got)
	}
	for i := range 10 * maxSaid / 10 {
		fmt.Fprintf(&l, "%9d\n", i)
	}
	fmt.Fprint(&l, strings.Repeat("-", maxSaid-4)+"end\n")
	if got := l.String(); !strings.HasSuffix(got, "-end") || len(got) > maxSaid {
		t.Errorf("%d bytes, %.20q", len(got), got)
	}
}

func TestWhatMemoryIsLeftIsKnown(t *testing.T) {
	if _, err := os.Stat("/proc/meminfo"); err != nil {
		t.Skip("only on Linux")
	}
	if free, ok := availableMemory(); !ok || free < 1<<20 || free > 1<<50 {
		t.Errorf("%d bytes, %v", free, ok)
	}
}
