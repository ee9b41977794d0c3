package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

const aboutDrill = `usage: lockstep-qemu drill [flags]

Drill starts a small guest of its own, which counts, protects it with a standby and
a guardian on this machine, kills it with SIGKILL, and brings it back; it says what
happened. Nothing has to be prepared but QEMU and KVM. Exit status: 0 the guest came
back and counted on, 1 not.
`

// drillGuest is firmware that counts in memory and prints the count now and then;
// its source is internal/qemutest/testdata/counter.S.
//
//go:embed guest.bin
var drillGuest []byte

func drillCommand(ctx context.Context, args []string, t terminal) int {
	f := flag.NewFlagSet("drill", flag.ContinueOnError)
	qemu := f.String("qemu", "qemu-system-x86_64", "run `PROGRAM` for both sides")
	mb := f.Int("m", 64, "give the guest `MB` of memory")
	delay := f.Duration("delay", 200*time.Millisecond, "take a checkpoint every so long")
	timeout := f.Duration("timeout", time.Minute, "give up after so long")
	if status, done := parse(f, aboutDrill, args, t, false); done {
		return status
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &printer{terminal: t}
	if err := (&drill{p: p, qemu: *qemu, mb: *mb, delay: *delay}).run(ctx); err != nil {
		p.warn("drill: %s", err)
		return exitFailed
	}
	return exitOK
}

// drill is one run of the command drill.
type drill struct {
	p     *printer
	qemu  string
	mb    int
	delay time.Duration
	all   sync.WaitGroup
}

func (d *drill) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "drill")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer d.all.Wait()
	defer cancel()
	bios := bytes.Clone(drillGuest)
	binary.LittleEndian.PutUint32(bios[0xff00:], 10)  // pages
	binary.LittleEndian.PutUint32(bios[0xff04:], 255) // prints every 256 rounds
	if err := os.WriteFile(filepath.Join(dir, "bios"), bios, 0o600); err != nil {
		return err
	}
	machine := func(serial string) []string {
		return []string{d.qemu, "-M", "pc", "-m", fmt.Sprint(d.mb), "-nodefaults", "-display", "none", "-accel", "kvm",
			"-bios", filepath.Join(dir, "bios"), "-serial", "file:" + filepath.Join(dir, serial)}
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, dir := range []string{a, b} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}

	standby := d.part(ctx, append([]string{"standby", "-listen", "unix:" + b + "/in", "-control", "unix:" + b + "/control", "-insecure", "-state", b, "--"}, machine("after")...))
	args := machine("before")
	cmd := exec.Command(args[0], append(args[1:], "-qmp", "unix:"+a+"/qmp,server=on,wait=off")...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	runs, over := context.WithCancelCause(ctx)
	go func() { // after the kill below, at the latest
		over(fmt.Errorf("its QEMU has ended: %v", cmp.Or(cmd.Wait(), errors.New("exit status 0"))))
		close(ended)
	}()
	defer func() { cmd.Process.Kill(); <-ended }()
	if err := d.await(runs, standby, "the guest to count", func() bool { return len(counted(dir, "before")) > 1 }); err != nil {
		cmd.Process.Kill()
		<-ended
		return errors.Join(err, errors.New(strings.TrimSpace(said.String())))
	}
	d.p.say("started     a guest of %d MB, in process %d; it has counted to %d", d.mb, cmd.Process.Pid, last(counted(dir, "before")))

	guardian := d.part(ctx, []string{"protect", "-stay", "-qmp", "unix:" + a + "/qmp", "-to", "unix:" + b + "/in", "-control", "unix:" + b + "/control",
		"-insecure", "-state", a, "-delay", d.delay.String(), "-stall", "30s", "-silence", "30s"}) // nothing hangs here but a busy machine
	var st standbyStatus
	began := time.Now()
	if err := d.await(ctx, guardian, "checkpoints", func() bool { return ask(ctx, b, "standby", &st) && st.Epoch >= 3 }); err != nil {
		return err
	}
	d.p.say("protected   after %.1f s there are %d checkpoints, one every %v", time.Since(began).Seconds(), st.Epoch, d.delay)

	before := counted(dir, "before")
	killed := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	<-ended
	d.p.say("killed      process %d with SIGKILL", cmd.Process.Pid)
	if err := d.await(ctx, standby, "the guest to count on", func() bool { return len(counted(dir, "after")) > 1 }); err != nil {
		return err
	}
	took := time.Since(killed)
	first := counted(dir, "after")[0]
	empty, err := d.empty(ctx, append(machine("empty"), "-S"), filepath.Join(dir, "empty.qmp"))
	if err != nil {
		return fmt.Errorf("a QEMU without a guest: %w", err)
	}
	if err := d.await(ctx, standby, "the standby to say so", func() bool { return ask(ctx, b, "standby", &st) && st.Back > 0 }); err != nil {
		return err
	}
	d.p.say("back        it counts on after %.0f ms, from %d; before it had printed %d", float64(took)/1e6, first, last(before))
	d.p.say("            its QEMU ran it %.0f ms after the loss; a QEMU with %d MB and no guest takes %.0f ms until its monitor answers", st.Back, d.mb, float64(empty)/1e6)
	if first < before[0] {
		return fmt.Errorf("the guest began anew, at %d", first)
	}
	m, err := qmp.Dial(ctx, b+"/qmp")
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Do(ctx, "quit", nil, nil); err != nil {
		return err
	}
	select {
	case status := <-standby:
		if status != exitOK {
			return fmt.Errorf("the standby has ended with status %d", status)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	d.p.say("done        what was printed between the last checkpoint and the kill is the only loss: %v at most", d.delay)
	return nil
}

// empty measures how long a QEMU without a guest takes from its start until its monitor
// answers. The QEMU has ended when it returns.
func (d *drill) empty(ctx context.Context, args []string, sock string) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.Command(args[0], append(args[1:], "-qmp", "unix:"+sock+",server=on,wait=off")...)
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		cancel() // nobody will answer
		close(ended)
	}()
	m, err := dialRetry(ctx, "unix:"+sock)
	took := time.Since(began)
	if err == nil {
		m.Close()
	}
	cmd.Process.Kill()
	<-ended
	if err != nil {
		return 0, errors.Join(err, errors.New(strings.TrimSpace(said.String())))
	}
	return took, nil
}

// part runs a command of this program in the background.
func (d *drill) part(ctx context.Context, args []string) <-chan int {
	done := make(chan int, 1)
	quiet := terminal{out: &tagged{d: d, tag: args[0]}, err: &tagged{d: d, tag: args[0]}}
	d.all.Go(func() { done <- run(ctx, args, quiet) })
	return done
}

// tagged prints each line behind the name of the part that wrote it.
type tagged struct {
	d    *drill
	tag  string
	mu   sync.Mutex
	line []byte
}

func (w *tagged) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(w.line, p...)
	for {
		i := bytes.IndexByte(w.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.d.p.say("  %-9s %s", w.tag, w.line[:i])
		w.line = w.line[i+1:]
	}
}

// await waits until is returns true; what says in an error what was waited for.
func (d *drill) await(ctx context.Context, part <-chan int, what string, is func() bool) error {
	for !is() {
		select {
		case status := <-part:
			return fmt.Errorf("waiting for %s: a part has ended with status %d", what, status)
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}

// ask gets the status of a part.
func ask(ctx context.Context, dir, role string, to any) bool {
	a, err := tell(ctx, socketIn(dir, role), order{Do: "status"})
	return err == nil && json.Unmarshal(a.Status, to) == nil
}

// counted returns the numbers that the guest has printed.
func counted(dir, serial string) (list []uint32) {
	p, _ := os.ReadFile(filepath.Join(dir, serial))
	for _, line := range strings.Fields(string(p[:bytes.LastIndexByte(p, '\n')+1])) {
		var n uint32
		if _, err := fmt.Sscanf(line, "%08x", &n); err == nil && len(line) == 8 {
			list = append(list, n)
		}
	}
	return list
}

func last(list []uint32) uint32 { return list[len(list)-1] }
