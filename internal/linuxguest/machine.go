package linuxguest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/internal/tied"
)

// MachineConfig says what a machine has. All files are on this host.
type MachineConfig struct {
	Name     string
	Emulator string // the program that emulates it, a QEMU; "": the host's own, found in PATH
	Dir      string // for its consoles, which stay
	Memory   int    // MiB
	TSC      uint64 // what its kernel believes the rate of the time-stamp counter to be, in kHz; 0: what it finds out
	// Stable says that its kernel is to trust the time-stamp counter, as that of a host does whose counter is
	// stable: KVM then sets the TSC of a guest by other rules. It goes by another clock itself in any case.
	Stable bool
	Kernel string
	Initrd []string // archives, one after the other

	Disk  string   // image of its virtio disk; "": none
	Ports []string // Unix sockets of its network cards' cables
	MACs  []string // of the cards

	Monitor string // Unix socket at which the emulator answers; "": none
	Pulse   string // Unix socket of a network card by which it is woken; "": none (see pulse.go)
}

// A Machine is a host: an emulated computer with AMD's virtualization, which
// runs a kernel of its own. It has one CPU: emulated, two of them now and then spoil what
// runs on them (see spoilt_machine.go), and the guest's vCPUs take turns on the one.
type Machine struct {
	cfg    MachineConfig
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
	killed atomic.Bool
	err    error

	pulsing chan struct{} // closed when the pulse has ended, soon after the machine; nil: there is none
}

// machineArgs is the command line of the kernel of the machine, but for what it is told of its time-stamp
// counter. It goes by another clock, since kernels that went by this one have stalled. Its
// addresses are not randomised, nor are the guests', so that one can be told from
// another: see spoilt. Its own tests of its ciphers, an eighth of the time of a boot, are
// left out, and so is its test that the timer interrupts it: it panics if there is no
// interrupt for some milliseconds, in which a busy host may not run the emulator.
const machineArgs = "console=ttyS0 quiet nokaslr cryptomgr.notests no_timer_check clocksource=hpet panic=-1 ipv6.disable=1 rdinit=/init"

// StartMachine starts a machine. It must be waited for, or killed.
func StartMachine(cfg MachineConfig) (*Machine, error) {
	m := &Machine{cfg: cfg, ended: make(chan struct{})}
	initrd := filepath.Join(cfg.Dir, cfg.Name+".initrd")
	if err := concatenate(initrd, cfg.Initrd); err != nil {
		return nil, err
	}
	for _, f := range []string{"console", "events"} { // of another run
		if err := os.Remove(m.file(f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	kernelArgs := machineArgs + " tsc=unstable"
	if cfg.Stable {
		kernelArgs = machineArgs + " tsc=reliable"
	}
	if cfg.TSC > 0 {
		kernelArgs += fmt.Sprintf(" tsc_early_khz=%d", cfg.TSC)
	}
	args := []string{
		"-nodefaults", "-display", "none", "-no-reboot",
		"-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt", "-m", fmt.Sprint(cfg.Memory),
		"-kernel", cfg.Kernel, "-initrd", initrd, "-append", kernelArgs,
		"-serial", "file:" + m.file("console"), "-serial", "file:" + m.file("events"),
	}
	if cfg.Pulse != "" {
		args = append(args, "-netdev", "stream,id=pulse,server=on,addr.type=unix,addr.path="+cfg.Pulse,
			"-device", "virtio-net-pci,netdev=pulse,mac="+pulseMAC+",romfile=")
	}
	for i, socket := range cfg.Ports {
		args = append(args,
			"-netdev", fmt.Sprintf("stream,id=net%d,server=off,addr.type=unix,addr.path=%s", i, socket),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", i, cfg.MACs[i]))
	}
	if cfg.Monitor != "" {
		args = append(args, "-monitor", "unix:"+cfg.Monitor+",server=on,wait=off")
	}
	if cfg.Disk != "" {
		args = append(args, "-drive", "if=virtio,format=raw,file="+cfg.Disk)
	}
	m.cmd = exec.Command(cmp.Or(cfg.Emulator, "qemu-system-x86_64"), args...)
	m.cmd.Stderr = &m.stderr
	release, err := tied.Start(m.cmd)
	if err != nil {
		return nil, err
	}
	go func() { // ends with the process
		m.err = m.cmd.Wait()
		release()
		close(m.ended)
	}()
	if cfg.Pulse != "" {
		m.pulsing = make(chan struct{})
		go func() {
			defer close(m.pulsing)
			pulse(cfg.Pulse, pulseEvery, m.ended)
		}()
	}
	return m, nil
}

func concatenate(name string, parts []string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range parts {
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if _, err := f.Write(data); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) file(what string) string {
	return filepath.Join(m.cfg.Dir, m.cfg.Name+"."+what)
}

// Name returns the machine's name.
func (m *Machine) Name() string { return m.cfg.Name }

// Memory returns how many bytes the machine has.
func (m *Machine) Memory() uint64 { return uint64(m.cfg.Memory) << 20 }

// Kill ends the machine like a power failure, with SIGKILL.
func (m *Machine) Kill() error {
	m.killed.Store(true)
	err := m.cmd.Process.Signal(syscall.SIGKILL)
	<-m.ended
	if m.pulsing != nil {
		<-m.pulsing
	}
	return err
}

// Died reports whether the machine has ended, and nobody has killed it.
func (m *Machine) Died() bool {
	select {
	case <-m.ended:
		return !m.killed.Load()
	default:
		return false
	}
}

// Ended is closed when the machine has switched itself off, or was killed.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Console returns what the machine has written so far to its console.
func (m *Machine) Console() string { return readSoFar(m.file("console")) }

// Events returns what was written so far to its second serial line.
func (m *Machine) Events() string { return readSoFar(m.file("events")) }

func readSoFar(name string) string {
	data, _ := os.ReadFile(name) // not there yet: nothing said
	return strings.ReplaceAll(string(data), "\r", "")
}

// Said waits until the text is on the machine's console or among its events.
func (m *Machine) Said(ctx context.Context, text string) error {
	for {
		if strings.Contains(m.Console(), text) || strings.Contains(m.Events(), text) {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-m.ended:
			if strings.Contains(m.Console(), text) || strings.Contains(m.Events(), text) {
				return nil
			}
			return fmt.Errorf("machine %s ended (%v) and has not said %q: %s", m.cfg.Name, m.err, text, m.stderr.String())
		case <-ctx.Done():
			return fmt.Errorf("machine %s has not said %q: %w", m.cfg.Name, text, context.Cause(ctx))
		}
	}
}
