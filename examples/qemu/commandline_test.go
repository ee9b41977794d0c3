package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
)

func TestWhatBelongsToTheProcessIsLeftOutOfTheCommandLine(t *testing.T) {
	const versioned = "pc-i440fx-7.2"
	for _, c := range []struct {
		name, was, is string
		devices       []plugged
		notes         []string // parts of them, in their order
	}{
		{name: "nothing", was: "q", is: "q -M pc-i440fx-7.2"},
		{name: "a machine by its short name", was: "q -M pc -m 16", is: "q -M pc-i440fx-7.2 -m 16"},
		{name: "with options", was: "q -machine pc,accel=kvm", is: "q -machine pc-i440fx-7.2,accel=kvm"},
		{name: "with its type behind", was: "q --machine accel=kvm,type=pc", is: "q -machine accel=kvm,type=pc-i440fx-7.2"},
		{name: "with options and no type", was: "q -machine accel=kvm -m 16", is: "q -M pc-i440fx-7.2 -machine accel=kvm -m 16"},
		{name: "with options and a type by itself", was: "q -machine accel=kvm -M pc -machine usb=off", is: "q -machine accel=kvm -M pc-i440fx-7.2 -machine usb=off"},
		{name: "with options of which one is like a type", was: "q -M kernel_irqchip=on,x-type=pc", is: "q -M pc-i440fx-7.2 -M kernel_irqchip=on,x-type=pc"},
		{name: "with a comma in a value", was: "q -M pc,firmware=a,,type=b,usb=off", is: "q -M pc-i440fx-7.2,firmware=a,,type=b,usb=off"},
		{name: "without a value", was: "q -m 16 -machine", is: "q -M pc-i440fx-7.2 -m 16 -machine"},
		{name: "as JSON", was: `q -machine {"type":"pc"}`, is: `q -machine {"type":"pc"}`, notes: []string{`-machine {"type":"pc"}: left as it is; its type has to be the full name, pc-i440fx-7.2`}},
		{name: "monitors", was: "q -M x -qmp unix:a,server=on -monitor stdio -qmp-pretty stdio --qmp tcp::1", is: "q -M pc-i440fx-7.2"},
		{name: "monitors as libvirt has them", was: "q -M x -chardev socket,id=charmonitor,fd=30,server=on -mon chardev=charmonitor,id=monitor,mode=control -chardev pty,id=c",
			is: "q -M pc-i440fx-7.2 -chardev pty,id=c"},
		{name: "a monitor by its short form", was: "q -M x -chardev stdio,id=m -mon m", is: "q -M pc-i440fx-7.2"},
		{name: "how it is started", was: "q -M x -S -daemonize -pidfile p -incoming tcp:0:1 -loadvm s -nodefaults", is: "q -M pc-i440fx-7.2 -nodefaults"},
		{name: "words for the guest's kernel", was: "q -M x -append -S -kernel k", is: "q -M pc-i440fx-7.2 -append -S -kernel k"},
		{name: "an option at the end", was: "q -M x -qmp", is: "q -M pc-i440fx-7.2"},
		{name: "a word that is no option", was: "q disk -M x", is: "q disk -M pc-i440fx-7.2", notes: []string{"(from /d): disk"}},
		{name: "the processor of the host", was: "q -M x -cpu host,pmu=off", is: "q -M pc-i440fx-7.2 -cpu host,pmu=off", notes: []string{"-cpu host: the processor"}},
		{name: "files", was: "q -M x -drive file=disk,format=raw -serial file:log -serial unix:/sock,server=on -m 16", is: "q -M pc-i440fx-7.2 -drive file=disk,format=raw -serial file:log -serial unix:/sock,server=on -m 16",
			notes: []string{"(from /d): disk log /sock"}},
		{name: "files in JSON", was: `q -M x -blockdev {"driver":"file","filename":"disk"}`, is: `q -M pc-i440fx-7.2 -blockdev {"driver":"file","filename":"disk"}`, notes: []string{"(from /d): disk"}},
		{name: "descriptors", was: "q -M x -netdev tap,fd=33,id=n -add-fd fd=3,set=1 -netdev tap,id=o,vhostfd=4", is: "q -M pc-i440fx-7.2 -netdev tap,fd=33,id=n -add-fd fd=3,set=1 -netdev tap,id=o,vhostfd=4",
			notes: []string{"-netdev tap,fd=33,id=n: the QEMU was handed", "-add-fd fd=3,set=1: the", "-netdev tap,id=o,vhostfd=4: the"}},
		{name: "devices that came and went", was: `q -M x -device a,id=stays -device b,id=gone -device {"driver":"c","id":"left"} -device d`, is: `q -M pc-i440fx-7.2 -device a,id=stays -device b,id=gone -device {"driver":"c","id":"left"} -device d`,
			devices: []plugged{{"stays", "a", false}, {"new", "e", true}, {"", "d", false}},
			notes:   []string{"device new, e, was added", "device gone is on the command line", "device left is on the command line"}},
		{name: "what cannot be known", was: "q -M x -readconfig disk -snapshot", is: "q -M pc-i440fx-7.2 -readconfig disk -snapshot", notes: []string{"-readconfig disk", "-snapshot", "(from /d): disk"}},
	} {
		exists := func(name string) bool { return slices.Contains([]string{"disk", "log", "/sock", "16"}, name) }
		args, notes := adapt(running{args: strings.Fields(c.was), dir: "/d", exists: exists}, &finding{Machine: versioned}, c.devices)
		if got := strings.Join(args, " "); got != c.is {
			t.Errorf("%s: %s, want %s", c.name, got, c.is)
		}
		if len(notes) != len(c.notes) {
			t.Errorf("%s: %q", c.name, notes)
			continue
		}
		for i, n := range c.notes {
			if !strings.Contains(notes[i], n) {
				t.Errorf("%s: %q, want %q", c.name, notes[i], n)
			}
		}
	}
}

func TestAnOddCommandLineIsAdapted(t *testing.T) {
	for _, line := range []string{
		"q\x00-M\x00pc\x00-chardev\x00socket,id=m\x00-mon\x00chardev=m\x00-drive\x00file=a,,b\x00-append",
		"q\x00-device\x00{\"id\": \"x\"}\x00--\x00-\x00\x00-machine\x00type=,=",
		"q\x00-mon\x00\x00-mon\x00=,chardev=\x00-chardev\x00id=\x00-cpu\x00-cpu",
		"",
	} {
		was := strings.Split(line, "\x00")
		args, _ := adapt(running{args: was, exists: func(string) bool { return true }}, &finding{Machine: "m"}, nil)
		if len(args) < 1 || args[0] != was[0] || len(args) > len(was)+2 {
			t.Errorf("%q becomes %q", was, args)
		}
	}
}

func TestArgumentsAreWrittenAsAShellReadsThem(t *testing.T) {
	sh := require.Program(t, require.Processes, "sh")
	args := []string{"plain-_=,.:/+@%", "", "a b", "it's", "$(x) `y` \\ \"z\"", "a\nb", "{\"k\":1}", "~", "*"}
	out, err := exec.Command(sh, "-c", `printf '%s\0' `+shellWords(args)).Output()
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, args) {
		t.Errorf("%v, %q", err, got)
	}
}

// What check offers takes the guest.
func TestTheOfferedCommandLineTakesTheGuest(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back, disk := qemutest.Dir(t), qemutest.Dir(t), qemutest.Dir(t)
	v, sock := monitored(t, "pc", "-chardev", "socket,id=mon,path="+filepath.Join(dir, "third")+",server=on,wait=off", "-mon", "chardev=mon,mode=control",
		"-pidfile", filepath.Join(dir, "pid"), "-smp", "2", "-device", "virtio-rng-pci,id=rng", "-netdev", "user,id=net", "-device", "e1000,netdev=net,romfile=",
		"-drive", "file="+emptyDisk(t, disk, "image")+",format=raw,if=virtio", "-vga", "std")
	check := func(more ...string) (r finding) {
		t.Helper()
		p := start(t, append([]string{"check", "-json", "-qmp", sock}, more...)...)
		p.ends(exitOK)
		if err := json.Unmarshal(p.object("check", 0), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := check()
	if len(r.Adapt) != 1 || !strings.Contains(r.Adapt[0], filepath.Join(disk, "image")) {
		t.Errorf("%q", r.Adapt)
	}
	if again := check("-pid", strconv.Itoa(v.Process().Pid)); !slices.Equal(again.Command, r.Command) {
		t.Errorf("%q, and by its process %q", r.Command, again.Command)
	}
	words := start(t, "check", "-qmp", sock)
	words.ends(exitOK)
	if !strings.Contains(words.output(), " -- \\\n    "+shellWords(r.Command)+"\n") {
		t.Errorf("it says %s", words.output())
	}

	// The files of the other host.
	for i, a := range r.Command {
		r.Command[i] = strings.NewReplacer(v.Dir, back, disk, back).Replace(a)
	}
	qemutest.GuestArgs(t, back, "pc", 16) // the firmware
	emptyDisk(t, back, "image")
	s := start(t, slices.Concat([]string{"standby", "-json", "-rehearse", "-listen", "127.0.0.1:0", "-state", dir, "--"}, r.Command)...)
	seen := qemutest.AwaitSerial(t, v.Dir, 2)
	v.Protect(s.text("listening"), 20*time.Millisecond)
	if r := s.rehearsal(0); !r.Fits {
		t.Errorf("%+v", r)
	}
	s.checkpoints(3)
	v.Kill()
	s.object("back", 0)
	counts(t, back, seen[1])
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

func TestWhatTheCommandLineDoesNotHaveIsNamed(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	v, sock := monitored(t, "pc", "-device", "virtio-rng-pci,id=first")
	v.Must("device_add", qemutest.Args{"driver": "virtio-rng-pci", "id": "second"})
	for _, c := range []struct {
		name    string
		args    []string
		command bool
		notes   []string
	}{
		{"a device that was added", nil, true, []string{"device second, virtio-rng-pci, was added"}},
		{"a process that is none", []string{"-pid", "1073741824"}, false, []string{"is not known", "device first, virtio-rng-pci", "device second, virtio-rng-pci"}},
	} {
		p := start(t, append([]string{"check", "-json", "-qmp", sock}, c.args...)...)
		p.ends(exitOK)
		var r finding
		if err := json.Unmarshal(p.object("check", 0), &r); err != nil {
			t.Fatal(err)
		}
		all := strings.Join(r.Adapt, "\n")
		for _, n := range c.notes {
			if !strings.Contains(all, n) {
				t.Errorf("%s: no %q in %q", c.name, n, r.Adapt)
			}
		}
		if (len(r.Command) > 0) != c.command {
			t.Errorf("%s: %q", c.name, r.Command)
		}
	}
}

// A socket that was opened by somebody else and handed to a QEMU is not taken for that
// process's.
func TestWhoListensForAnotherIsNotTakenForIt(t *testing.T) {
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("no /proc here")
	}
	addr := "unix:" + filepath.Join(qemutest.Dir(t), "handed-to-another")
	l, _, err := listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", strings.TrimPrefix(addr, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if q, err := findQEMU(conn, addr, 0); err == nil || !strings.Contains(err.Error(), "does not name it") {
		t.Errorf("%q, %v", q.args, err)
	}
	if q, err := findQEMU(conn, addr, os.Getpid()); err != nil || !slices.Equal(q.args, os.Args) || !q.exists("commandline.go") || q.exists("none") {
		t.Errorf("%q, %v", q.args, err)
	}
}
