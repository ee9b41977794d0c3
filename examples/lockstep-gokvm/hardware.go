package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// hardware opens the parts of the host that this program needs; a test has others.
type hardware struct {
	// machine makes a paused machine and loads the kernel into it, if there is one. Where there
	// is none, the guest comes over the wire.
	machine func(options, gokvmhost.Config) (machine, error)
	// probe returns an error, in one line, if machine cannot succeed.
	probe func() error
	// cable opens the interface that the guest's network card is connected to.
	cable func(options) (cable, error)
	// image opens the image of the guest's disk. keeps says that the metadata of one that is a
	// replication.MetadataKeeper outlives the process.
	image func(name string) (_ image, keeps bool, err error)
	// there returns an error if there is no disk that image could open. It takes no lock: somebody
	// may be about to open the disk. nil: nobody looks.
	there func(name string) error
	// notify is signal.Notify.
	notify func(c chan<- os.Signal, sig ...os.Signal)
	// memory returns the place to read the memory of a saved guest from. nil: its file.
	memory func(*os.File) io.ReaderAt
	// dial connects to the other host's address. nil: by TCP.
	dial func(ctx context.Context, address string) (net.Conn, error)
	// silence is how long the host that sends a guest here may say nothing. 0: silentTime.
	silence time.Duration
}

// A machine runs a guest.
type machine interface {
	colo.VM
	Run(context.Context) error
	Register(*vmstate.Registry) error
	Blocks() []ram.Block
	DirtyLog() ram.DirtyLog
	ReceivePacket([]byte) error
	Input([]byte) (int, error)
	DiskGrown(size int64) error
	Close() error
}

// A cable is where frames go and come from.
type cable interface {
	proxy.Network
	io.Closer
}

// thisHost is KVM, gokvm's machine and TAP interfaces.
var thisHost = hardware{
	machine: newMachine,
	probe: func() error {
		return cannotRun(kvm.Probe())
	},
	cable:  openTAP,
	image:  openImage,
	there:  imageThere,
	notify: signal.Notify,
}

// cannotRun adds to the error of KVM what an operator can do; nil: it can be used.
func cannotRun(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this host cannot run a guest: %w (this user may not: put it into the group that /dev/kvm belongs to)", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("this host cannot run a guest: %w (the kernel has no KVM: load kvm_intel or kvm_amd, or turn virtualization on in the firmware)", err)
	}
	return fmt.Errorf("this host cannot run a guest: %w", err)
}

// openImage opens an image file, beside which its metadata is kept, or a block device.
func openImage(name string) (_ image, keeps bool, err error) {
	f, err := replication.OpenFile(name)
	if err != nil {
		return nil, false, err // not a nil *File that is an image
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return f, st.Mode().IsRegular(), nil
}

// imageThere looks whether an image is there, and may be written to.
func imageThere(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// openTAP opens a TAP interface that is there. The kernel makes one that is not, which
// nobody would have connected to anything.
func openTAP(o options) (cable, error) {
	if _, err := os.Stat(filepath.Join("/sys/class/net", o.tap, "tun_flags")); err != nil {
		if _, e := net.InterfaceByName(o.tap); e != nil {
			return nil, fmt.Errorf("there is no interface %q", o.tap)
		}
		return nil, fmt.Errorf("%q is no TAP interface", o.tap)
	}
	cfg := tap.Config{Name: o.tap, VNetHdrLen: headerFor(o)}
	if o.offload {
		cfg.Offload = tap.OffloadChecksum | tap.OffloadTSO4 | tap.OffloadTSO6
	}
	return tap.Open(cfg)
}

// headerFor returns how long the virtio-net header is before the frames of an interface:
// one that leaves checksums and segmentation to the guest has to say what it has left.
func headerFor(o options) int {
	if o.offload {
		return 12
	}
	return 0
}

// headerOf returns how long the header is before the frames of a cable, 0 for none.
func headerOf(c cable) int {
	if v, ok := c.(interface{ VNetHdrLen() int }); ok {
		return v.VNetHdrLen()
	}
	return 0
}

// gokvmMachine is a machine of gokvm, or one that gokvmhost.Create has made for its guest.
type gokvmMachine struct {
	*gokvmhost.Host
	machine *gokvmhost.Machine // nil: of gokvmhost.Create
}

// newMachine makes a machine. One whose guest comes from elsewhere has memory that nobody
// has touched: with -lazy it is not touched before the guest does so.
func newMachine(o options, devices gokvmhost.Config) (machine, error) {
	if o.kernel == "" {
		m, err := emptyMachine(o, devices)
		if err != nil {
			return nil, err // not a nil *gokvmMachine that is a machine
		}
		return m, nil
	}
	m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: o.vcpus, Memory: o.mem})
	if err != nil {
		return nil, err
	}
	if err = loadLinux(m, o); err == nil {
		var h *gokvmhost.Host
		if h, err = gokvmhost.Attach(m, devices); err == nil {
			return &gokvmMachine{h, m}, nil
		}
	}
	return nil, errors.Join(err, gokvmhost.CloseMachine(m))
}

func emptyMachine(o options, devices gokvmhost.Config) (*gokvmMachine, error) {
	h, err := gokvmhost.Create(gokvmhost.MachineConfig{VCPUs: o.vcpus, Memory: o.mem}, devices)
	if err != nil {
		return nil, err
	}
	return &gokvmMachine{Host: h}, nil
}

func loadLinux(m *gokvmhost.Machine, o options) error {
	kernel, err := os.Open(o.kernel)
	if err != nil {
		return fmt.Errorf("-kernel: %w", err)
	}
	defer kernel.Close()
	var initrd io.ReaderAt // nil, not a nil *os.File
	if o.initrd != "" {
		f, err := os.Open(o.initrd)
		if err != nil {
			return fmt.Errorf("-initrd: %w", err)
		}
		defer f.Close()
		initrd = f
	}
	if err := gokvmhost.LoadLinux(m, kernel, initrd, o.append); err != nil {
		return fmt.Errorf("-kernel %s: %w", o.kernel, err)
	}
	return nil
}

// MatchCPU calls MatchCPU of the machine's kvm.VM.
func (m *gokvmMachine) MatchCPU() ([]byte, func([]byte) error, error) { return m.VM().MatchCPU() }

func (m *gokvmMachine) DirtyLog() ram.DirtyLog { return m.VM() }

func (m *gokvmMachine) Close() error {
	err := m.Host.Close()
	if m.machine != nil {
		err = errors.Join(err, gokvmhost.CloseMachine(m.machine))
	}
	return err
}
