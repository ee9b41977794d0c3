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
		{name: "a debugger's port", was: "q -M x -s -gdb tcp::1 -m 16", is: "q -M pc-i440fx-7.2 -m 16", notes: []string{"-s was left out", "-gdb was left out"}},
		{name: "a password that a monitor has set", was: "q -M x -vnc :1,password -vnc :2,password=on,sasl=off -vnc :3,password=off", is: "q -M pc-i440fx-7.2 -vnc :1,password -vnc :2,password=on,sasl=off -vnc :3,password=off",
			notes: []string{"-vnc: its password", "-vnc: its password"}},
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

// What is a secret is in nothing that is printed, and what is none is left as it is.
func TestASecretOfACommandLineIsNotShown(t *testing.T) {
	const s = "<not shown>"
	for _, c := range []struct {
		option, was, is string
	}{
		{"object", "secret,id=s,data=hunter2", "secret,id=s,data=" + s},
		{"object", "secret,data=hun,,ter2,id=s", "secret,data=" + s + ",id=s"},
		{"object", "qom-type=secret,id=s,data=hunter2,format=raw", "qom-type=secret,id=s,data=" + s + ",format=raw"},
		{"object", `{"qom-type":"secret","id":"s","data":"hun\"ter2"}`, `{"qom-type":"secret","id":"s","data":"` + s + `"}`},
		{"object", `{'data' : 'hunter2', 'qom-type': 'secret'}`, `{'data' : "` + s + `", 'qom-type': 'secret'}`},
		{"set", "object.s.data=hunter2", "object.s.data=" + s},
		{"spice", "port=1,password=hunter2", "port=1,password=" + s},
		{"spice", "password=on", "password=" + s},
		{"vnc", ":1,password=hunter2", ":1,password=" + s},
		{"iscsi", "user=u,password=hunter2", "user=u,password=" + s},
		{"drive", "if=none,file.driver=https,file.cookie=hunter2", "if=none,file.driver=https,file.cookie=" + s},
		{"drive", "file=ssh://u:hunter2@host/disk,format=raw", "file=ssh://u:" + s + "@host/disk,format=raw"},
		{"drive", "file=iscsi://u%hunter2@host/target/1", "file=iscsi://u%" + s + "@host/target/1"},
		{"drive", "file=rbd:pool/image:id=u:key=hun\\:ter2:mon_host=m", "file=rbd:pool/image:id=u:key=" + s + ":mon_host=m"},
		{"drive", `file=json:{"driver":"https",,"url":"https://u:hunter2@host/disk"}`, `file=json:{"driver":"https",,"url":"https://u:` + s + `@host/disk"}`},
		{"blockdev", `{"driver":"https","cookie":"hunter2","url":"https://host"}`, `{"driver":"https","cookie":"` + s + `","url":"https://host"}`},
		{"smbios", "type=11,value=io.systemd.credential:passwd=hunter2", "type=11,value=io.systemd.credential:passwd=" + s},
		{"smbios", "type=11,value=io.systemd.credential.binary:passwd=aHVudGVyMg==", "type=11,value=io.systemd.credential.binary:passwd=" + s},
		{"fw_cfg", "name=opt/io.systemd.credentials/passwd,string=hunter2", "name=opt/io.systemd.credentials/passwd,string=" + s},
		{"", "https://u:hunter2@host/disk", "https://u:" + s + "@host/disk"},

		{"object", "secret,id=s,file=/a", ""},
		{"object", "secret_keyring,id=s,serial=1", ""},
		{"object", "rng-random,id=s,data=a", ""},
		{"object", `{"qom-type":"tls-creds-x509","passwordid":"s"}`, ""},
		{"spice", "port=1,password-secret=s,disable-ticketing=on", ""},
		{"vnc", ":1,password=on,password-secret=s", ""},
		{"drive", "file.password-secret=s,file=nbd://host:10809/disk@1", ""},
		{"drive", "file=ssh://u@host:22/disk", ""},
		{"blockdev", `{"driver":"https","cookie-secret":"s","data":"x"}`, ""},
		{"fw_cfg", "name=opt/other,string=x", ""},
		{"smbios", "type=1,serial=x", ""},
		{"append", "password=x url=ssh://u:p@host", ""},
	} {
		want, secret := c.is, c.is != ""
		if !secret {
			want = c.was
		}
		if got, found := withoutSecrets(c.option, c.was); got != want || found != secret {
			t.Errorf("-%s %s: %s, %v", c.option, c.was, got, found)
		}
		if c.option == "" {
			continue
		}
		args, notes := adapt(running{args: []string{"q", "-" + c.option, c.was}, exists: func(string) bool { return true }}, &finding{}, nil)
		if !slices.Contains(args, want) {
			t.Errorf("-%s %s: offered is %q", c.option, c.was, args)
		}
		all := strings.Join(notes, "\n")
		if strings.Contains(all, "hunter2") || strings.Contains(all, "a secret in -"+c.option+" is not shown") != secret {
			t.Errorf("-%s %s: %q", c.option, c.was, notes)
		}
	}
}

// The process behind a monitor is the one that names its socket, whole, and is a QEMU.
func TestOnlyAQEMUThatNamesItsMonitorServesIt(t *testing.T) {
	const qemu, qmp = "/usr/bin/qemu-system-x86_64", "/run/vm/qmp"
	for _, c := range []struct {
		name, exe, args, path string
		err                   string
	}{
		{"its monitor", qemu, "q -qmp unix:/run/vm/qmp,server=on", qmp, ""},
		{"from another directory", qemu, "q -qmp unix:qmp,server=on", qmp, ""},
		{"as a character device", qemu, "q -chardev socket,id=m,path=/run/vm/qmp,server=on -mon chardev=m", qmp, ""},
		{"as JSON", qemu, `q -chardev {"backend":{"addr":{"path":"/run/vm/qmp"}}}`, qmp, ""},
		{"with a comma", qemu, "q -qmp unix:a,,b,server=on", "/run/a,b", ""},
		{"with what separates", qemu, "q -qmp unix:/run/a:b=c,server=on", "/run/a:b=c", ""},
		{"of no file", qemu, "q -qmp unix:m,abstract=on", "@m", ""},
		{"under another name", "/usr/libexec/qemu-kvm", "q -qmp unix:qmp", qmp, ""},
		{"behind a loader", "/lib/ld.so", "/usr/bin/qemu-system-arm -qmp unix:qmp", qmp, ""},
		{"whose program is not seen", "", "kvm -qmp unix:qmp", qmp, ""},
		{"which was replaced", qemu + " (deleted)", "q -qmp unix:qmp", qmp, ""},
		{"an option that is called so", qemu, "q -qmp unix:other", qmp, "does not name it"},
		{"a part of a name", qemu, "q -qmp unix:/run/qmp2 -name t", "/run/t2", "does not name it"},
		{"a directory that is called so", qemu, "q -qmp unix:/run/qmp/monitor", qmp, "does not name it"},
		{"the program only", qemu, "qmp -qmp stdio", qmp, "does not name it"},
		{"nothing", qemu, "q", qmp, "does not name it"},
		{"a proxy", "/usr/bin/socat", "socat UNIX-LISTEN:qmp UNIX:/run/other", qmp, "is no QEMU"},
		{"this program", "/opt/qemu", "/opt/qemu standby -state /run/vm/qmp", qmp, "is no QEMU"},
		{"a QEMU without a guest", "/usr/bin/qemu-storage-daemon", "qemu-storage-daemon --chardev socket,id=m,path=qmp", qmp, "is no QEMU"},
		{"in a directory that is called so", "/opt/qemu-system/proxy", "/opt/qemu-kvm/proxy unix:qmp", qmp, "is no QEMU"},
	} {
		err := serves(c.exe, strings.Fields(c.args), c.path)
		if c.err == "" && err != nil || c.err != "" && (err == nil || err.Error() != c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// However often a value has what may be before a name, the names to look for stay in
// proportion to it.
func TestTheNamesInAValueAreInProportionToIt(t *testing.T) {
	for _, unit := range []string{"=", ":", ",", "1=", "a=,", "a,,", `"=`} {
		for _, first := range []string{"", "{"} {
			value := first + strings.Repeat(unit, 1<<17/len(unit))
			sum := 0
			for _, f := range filesIn(value) {
				sum += len(f)
			}
			if sum > maxValues*len(value) {
				t.Errorf("%s and many of %s: %d bytes of names from %d", first, unit, sum, len(value))
			}
		}
	}
	deep := strings.Repeat("d/", maxName/4)
	if got := filesIn("file=" + deep + "f"); !slices.Contains(got, deep+"f") {
		t.Errorf("a name of %d bytes is not among %d", len(deep)+1, len(got))
	}
}

func TestAnOddCommandLineIsAdapted(t *testing.T) {
	for _, line := range []string{
		"q\x00-M\x00pc\x00-chardev\x00socket,id=m\x00-mon\x00chardev=m\x00-drive\x00file=a,,b\x00-append",
		"q\x00-device\x00{\"id\": \"x\"}\x00--\x00-\x00\x00-machine\x00type=,=",
		"q\x00-object\x00secret\x00-object\x00\x00-spice\x00-vnc\x00,password\x00-set\x00{",
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
	if len(os.Args) > 1 { // a name that is on this process's command line, which is no QEMU's
		named := "unix:" + filepath.Join(qemutest.Dir(t), filepath.Base(os.Args[1]))
		if q, err := findQEMU(conn, named, 0); err == nil || !strings.Contains(err.Error(), "is no QEMU") {
			t.Errorf("%q, %v", q.args, err)
		}
	}
	if q, err := findQEMU(conn, addr, os.Getpid()); err != nil || !slices.Equal(q.args, os.Args) || !q.exists("commandline.go") || q.exists("none") {
		t.Errorf("%q, %v", q.args, err)
	}
}
