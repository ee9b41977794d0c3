//go:build linux && amd64

package gokvmhost

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// noDisk is a disk of which nothing is asked.
type noDisk struct{ Disk }

func (noDisk) Size() int64 { return 4096 }

// What stands for a tap, and has no more to come, ends Receive: it would never wait.
func TestATapWithoutMoreFramesIsAnError(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	tap, err := newTapUplink(ends[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(tap.giveBack(), tap.close(), unix.Close(ends[0])); err != nil {
			t.Error(err)
		}
	}()
	if _, err := unix.Write(ends[1], []byte("a frame")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(ends[1]); err != nil {
		t.Fatal(err)
	}
	var frames []string
	err = tap.Receive(t.Context(), func(frame []byte) error {
		frames = append(frames, string(frame))
		return nil
	})
	if !errors.Is(err, io.EOF) || !slices.Equal(frames, []string{"a frame"}) {
		t.Errorf("%q came, and then %v", frames, err)
	}
}

// A machine that was given a tap is adopted with it: frames go both ways, and what
// gokvm has for it ends.
func TestTheTapThatTheMachineHasIsUsed(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	require.Outside(t, require.NetNS)
	runtime.LockOSThread() // for good: the thread has a network of its own
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := New(MachineConfig{Memory: 32 << 20})
	must(err)
	defer CloseMachine(m)
	if err := m.AddTapIf("guest0"); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	// A machine that is not taken over keeps it as it was.
	image := filepath.Join(t.TempDir(), "disk")
	must(os.WriteFile(image, make([]byte, 4096), 0o600))
	must(m.AddDisk(image))
	p, err := partsOf(m)
	must(err)
	has, err := adopt(p.pci)
	must(err)
	before, err := unix.FcntlInt(uintptr(has.nic.tap), unix.F_GETFL, 0)
	must(err)
	has.disk.file.Close()
	if h, err := Attach(m, Config{}); err == nil {
		t.Error("a machine with a disk that is closed is taken over")
		h.Close()
	}
	if after, err := unix.FcntlInt(uintptr(has.nic.tap), unix.F_GETFL, 0); after != before || after&unix.O_ASYNC == 0 || err != nil {
		t.Errorf("the tap had the flags %#x, and has %#x when it was not taken over (%v)", before, after, err)
	}

	h, err := Attach(m, Config{Disk: noDisk{}})
	must(err)
	defer h.Close()

	// A kernel socket at the other end of the tap.
	ifc, err := net.InterfaceByName("guest0")
	must(err)
	const protocol = 0xb588 // 0x88b5, an EtherType for experiments, in network byte order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, protocol)
	must(err)
	defer unix.Close(s)
	r, err := unix.NewIfreq(ifc.Name)
	must(err)
	must(unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r))
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	must(unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r))
	must(unix.Bind(s, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifc.Index}))

	frame := func(text string) []byte {
		f := append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 9, 0x88, 0xb5)
		return append(f, bytes.Repeat([]byte(text), 20)...)
	}
	out := frame("from the guest")
	must(h.tap.WritePacket(out))
	in := make([]byte, 2000)
	n, err := unix.Read(s, in)
	must(err)
	if !bytes.Equal(in[:n], out) {
		t.Errorf("%q left the guest", in[:n])
	}

	// What arrives waits in the card, and is in its state.
	for range 2 { // Run can run again
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		_, err = unix.Write(s, frame("to the guest"))
		must(err)
		var reg vmstate.Registry
		must(h.Register(&reg))
		for {
			var b bytes.Buffer
			w := qemufile.NewWriter(&b)
			must(reg.SaveDevices(w))
			must(w.Flush())
			if bytes.Contains(b.Bytes(), frame("to the guest")) {
				break
			}
			runtime.Gosched()
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
