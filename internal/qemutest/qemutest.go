// Package qemutest runs real QEMUs for tests: a guest that counts, its serial
// line, and its monitor.
package qemutest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/tied"
)

// counter is firmware that writes a counter into some pages at 1 MiB, round
// after round, and prints it on the serial line every so many rounds, in eight
// hexadecimal digits. Its source is testdata/counter.S. Nothing but it and what
// it writes is in the machine's memory.
//
//go:embed testdata/counter.bin
var counter []byte

// Firmware returns the counter, for a number of pages; every is a power of two.
func Firmware(pages, every uint32) []byte {
	p := bytes.Clone(counter)
	binary.LittleEndian.PutUint32(p[0xff00:], pages)
	binary.LittleEndian.PutUint32(p[0xff04:], every-1)
	return p
}

// Every is how many rounds of GuestArgs' guest lie between two numbers.
const Every = 256

// DiskSectors is how many sectors DiskFirmware's guest writes, and comes back to.
const DiskSectors = 256

// DiskFirmware returns the counter of GuestArgs, which also writes each number
// that it prints to its first IDE disk, on machine "pc": number n*Every to the
// beginning of sector n modulo DiskSectors.
func DiskFirmware() []byte {
	p := Firmware(10, Every)
	binary.LittleEndian.PutUint32(p[0xff08:], 1)
	return p
}

// Binary is the QEMU that is run.
const Binary = "qemu-system-x86_64"

// Rounds is how many checkpoints a long test waits for.
func Rounds() int {
	if require.Sampled() {
		return 10
	}
	return 50
}

// patience bounds each wait of a test for a QEMU.
const patience = time.Minute

var kvm = sync.OnceValue(func() error {
	path, err := exec.LookPath(Binary)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-accel", "kvm", "-M", "pc", "-m", "4", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("quit\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
})

// KVMError returns why QEMU cannot use KVM here, nil if it can: the device may open, and
// KVM may still be unable to run a guest.
func KVMError() error { return kvm() }

// KVM skips a test where QEMU cannot use KVM. A stock QEMU 7.2 that emulates the
// processor (TCG) deadlocks in its first checkpoint as a primary and loses dirty
// pages, so checkpoints of a running guest are only tested with KVM.
func KVM(t testing.TB) {
	t.Helper()
	require.Program(t, require.QEMU, Binary)
	require.Usable(t, require.KVM, kvm)
}

// VM is a QEMU process.
type VM struct {
	*qmp.Client
	Dir  string
	Args []string // as it was started

	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{}
	log  bytes.Buffer // complete when done is closed
}

// GuestArgs returns the arguments for a machine that counts in ten pages; its
// serial line goes to a file in dir that Serial reads. Machine "none" has no
// guest and needs no KVM.
func GuestArgs(t testing.TB, dir, machine string, megabytes int) []string {
	t.Helper()
	return FirmwareArgs(t, dir, machine, megabytes, Firmware(10, Every))
}

// FirmwareArgs returns the arguments of GuestArgs for other firmware. On Linux every process
// that still runs with these arguments when the test ends is killed.
func FirmwareArgs(t testing.TB, dir, machine string, megabytes int, firmware []byte) []string {
	t.Helper()
	args := []string{"-M", machine, "-m", strconv.Itoa(megabytes), "-nodefaults", "-display", "none"}
	if machine == "none" {
		return args
	}
	bios := filepath.Join(dir, "bios")
	if err := os.WriteFile(bios, firmware, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(bios) })
	return append(args, "-accel", "kvm", "-bios", bios, "-serial", "file:"+filepath.Join(dir, "serial"))
}

// Start runs a QEMU with a monitor. It is killed when the test ends, and on Linux
// when its process does.
func Start(t testing.TB, dir string, args ...string) *VM {
	t.Helper()
	path := require.Program(t, require.QEMU, Binary)
	sock := filepath.Join(dir, "qmp")
	v := &VM{t: t, Dir: dir, Args: args, done: make(chan struct{})}
	v.cmd = exec.Command(path, append(args, "-qmp", "unix:"+sock+",server=on,wait=off")...)
	v.cmd.Stdout, v.cmd.Stderr = &v.log, &v.log
	release, err := tied.Start(v.cmd)
	if err != nil {
		t.Fatal(err)
	}
	go func() { v.cmd.Wait(); release(); close(v.done) }()
	t.Cleanup(func() {
		v.Kill()
		if v.Client != nil {
			v.Client.Close()
		}
		if t.Failed() {
			t.Logf("%s %s said: %s", Binary, strings.Join(args, " "), v.log.Bytes())
		}
	})
	v.Client = Monitor(t, sock)
	return v
}

// Monitor connects to a monitor that may not be there yet.
func Monitor(t testing.TB, addr string) *qmp.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		c, err := qmp.Dial(ctx, addr)
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			t.Fatalf("monitor %s: %v", addr, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Dir returns a new directory, with a name short enough for a socket in it.
func Dir(t testing.TB) string {
	t.Helper()
	return socket.Dir(t)
}

// Must executes a command of the monitor and returns its result.
func (v *VM) Must(command string, args any) map[string]any {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out any
	if err := v.Do(ctx, command, args, &out); err != nil {
		v.t.Fatal(err)
	}
	m, _ := out.(map[string]any)
	return m
}

// Args is short for the arguments of a command.
type Args map[string]any

// Protect starts COLO from this QEMU to an address, as QEMU writes it.
func (v *VM) Protect(uri string, delay time.Duration, capabilities ...string) {
	v.t.Helper()
	var caps []Args
	for _, c := range append(capabilities, "x-colo", "events") {
		caps = append(caps, Args{"capability": c, "state": true})
	}
	v.Must("migrate-set-capabilities", Args{"capabilities": caps})
	v.Must("migrate-set-parameters", Args{"x-checkpoint-delay": delay.Milliseconds()})
	v.Must("migrate", Args{"uri": uri})
}

// Await returns when an event of a name has come.
func (v *VM) Await(name string) event.Record {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rec, err := v.Wait(ctx, func(r event.Record) bool { return r.Event.Name() == name })
	if err != nil {
		v.t.Fatalf("event %s: %v", name, err)
	}
	return rec
}

// Saw reports whether an event of a name has come and was not awaited yet; an
// earlier one stays to be awaited.
func (v *VM) Saw(name string) bool {
	v.t.Helper()
	v.Must("query-status", nil) // an event that has been sent comes before the answer
	return v.Pending(func(r event.Record) bool { return r.Event.Name() == name })
}

// AwaitRunState returns when query-status says state.
func (v *VM) AwaitRunState(state string) {
	v.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		got := v.RunState()
		if got == state {
			return
		}
		if time.Now().After(end) {
			v.t.Fatalf("the guest is %s, not %s", got, state)
		}
	}
}

// AwaitEnd returns when the process has ended by itself.
func (v *VM) AwaitEnd() {
	v.t.Helper()
	select {
	case <-v.done:
	case <-time.After(patience):
		v.t.Fatal("QEMU has not ended")
	}
}

// RunState returns the status that query-status answers.
func (v *VM) RunState() string {
	v.t.Helper()
	s, _ := v.Must("query-status", nil)["status"].(string)
	return s
}

// Memory returns size bytes of the guest's physical memory, as pmemsave has it.
func (v *VM) Memory(from, size int) []byte {
	v.t.Helper()
	f := filepath.Join(v.Dir, "memory")
	v.Must("pmemsave", Args{"val": from, "size": size, "filename": f})
	p, err := os.ReadFile(f)
	if err != nil || len(p) != size {
		v.t.Fatalf("pmemsave: %d bytes, %v", len(p), err)
	}
	return p
}

// Kill ends the process with SIGKILL and waits for it.
func (v *VM) Kill() {
	v.cmd.Process.Kill()
	<-v.done
}

// Process returns the process of the running QEMU.
func (v *VM) Process() *os.Process { return v.cmd.Process }

// Serial returns the numbers that the guest has printed on the serial line in
// dir, whole lines only.
func Serial(dir string) []uint32 {
	p, _ := os.ReadFile(filepath.Join(dir, "serial"))
	return Counts(p)
}

// Counts returns the numbers in what a guest has printed.
func Counts(p []byte) []uint32 {
	p = p[:bytes.LastIndexByte(p, '\n')+1]
	var list []uint32
	for _, line := range strings.Fields(string(p)) {
		if n, err := strconv.ParseUint(line, 16, 32); err == nil && len(line) == 8 {
			list = append(list, uint32(n))
		}
	}
	return list
}

// AwaitSerial returns when the guest has printed at least n numbers.
func AwaitSerial(t testing.TB, dir string, n int) []uint32 {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if list := Serial(dir); len(list) >= n {
			return list
		}
		if time.Now().After(end) {
			p, _ := os.ReadFile(filepath.Join(dir, "serial"))
			t.Fatalf("the guest has printed %d numbers, not %d: %q", len(Serial(dir)), n, p[:min(len(p), 300)])
		}
	}
}

// Listen returns a listener on loopback and the address as QEMU writes it.
func Listen(t testing.TB) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, "tcp:" + l.Addr().String()
}
