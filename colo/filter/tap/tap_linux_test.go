package tap_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/require"
)

var (
	_ filter.PacketReader  = (*tap.Device)(nil)
	_ filter.PacketWriter  = (*tap.Device)(nil)
	_ compare.PacketWriter = (*tap.Device)(nil)
)

// open returns a device in a network namespace of its own, which ends with the
// thread that the test's goroutine keeps.
func open(t *testing.T, cfg tap.Config) *tap.Device {
	t.Helper()
	require.Outside(t, require.NetNS)
	runtime.LockOSThread() // for good: the thread is of no use to others
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	d, err := tap.Open(cfg)
	if err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// up gives the interface the address 10.9.0.1/8.
func up(t *testing.T, d *tap.Device) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := req.SetInet4Addr(netip.MustParseAddr("10.9.0.1").AsSlice()); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req); err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// question asks who has 10.9.0.1, behind n bytes of header.
func question(n int) []byte {
	return append(make([]byte, n),
		"\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x02\x08\x06"+
			"\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x02\x0a\x09\x00\x02"+
			"\x00\x00\x00\x00\x00\x00\x0a\x09\x00\x01"...)
}

func TestKernelAnswersThroughTheInterface(t *testing.T) {
	for _, vnet := range []int{0, 10, 12} {
		t.Run("", func(t *testing.T) {
			d := open(t, tap.Config{VNetHdrLen: vnet})
			up(t, d)
			if d.VNetHdrLen() != vnet || d.Name() == "" {
				t.Fatalf("%d, %q", d.VNetHdrLen(), d.Name())
			}
			answers := func() {
				t.Helper()
				for {
					p, err := d.ReadPacket()
					if err != nil {
						t.Fatal(err)
					}
					if len(p) > vnet+42 || len(p) < vnet+42 || p[vnet+12] != 8 || p[vnet+13] != 6 {
						continue // the kernel says other things as well
					}
					if !bytes.Equal(p[:vnet], make([]byte, vnet)) || p[vnet+21] != 2 {
						t.Fatalf("%x", p)
					}
					return
				}
			}
			const n = 200 // more than a batch
			for range n {
				if err := d.WritePacket(question(vnet)); err != nil {
					t.Fatal(err)
				}
			}
			for range n {
				answers()
			}
			for _, hdr := range []int{0, 10, 12} {
				if err := d.WriteVNetPacket(question(hdr), hdr); err != nil {
					t.Fatal(err)
				}
				answers()
			}
			if n := d.Lost(); n != 0 {
				t.Errorf("%d lost", n)
			}
		})
	}
}

func TestFramesForAnInterfaceThatIsDownAreLost(t *testing.T) {
	d := open(t, tap.Config{})
	if err := d.WritePacket(question(0)); err != nil {
		t.Fatal(err)
	}
	up(t, d)
	for _, p := range [][]byte{nil, {1}} { // no frames
		if err := d.WritePacket(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WriteVNetPacket([]byte{1}, 12); err != nil {
		t.Fatal(err)
	}
	if n := d.Lost(); n < 3 {
		t.Errorf("%d lost", n)
	}
}

func TestCloseEndsReading(t *testing.T) {
	d := open(t, tap.Config{Name: "guest%d"})
	if d.Name() != "guest0" {
		t.Errorf("named %q", d.Name())
	}
	done := make(chan error)
	go func() {
		_, err := d.ReadPacket()
		done <- err
	}()
	time.Sleep(time.Millisecond) // most likely it waits by then
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	var e *tap.Error
	if err := d.WritePacket(question(0)); !errors.Is(err, os.ErrClosed) || !errors.As(err, &e) || e.Op != "write" {
		t.Errorf("%v", err)
	}
	if _, err := d.ReadPacket(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestOpenRefusesWhatTheKernelWould(t *testing.T) {
	for words, cfg := range map[string]tap.Config{
		"a virtio-net header of 11 bytes":     {VNetHdrLen: 11},
		"a name of 22 bytes":                  {Name: "a-name-of-an-interface"},
		"offloads without virtio-net headers": {Offload: tap.OffloadChecksum},
	} {
		if d, err := tap.Open(cfg); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v, %v", cfg, d, err)
		}
	}
}

func TestReadingAndWritingAllocateNothing(t *testing.T) {
	d := open(t, tap.Config{})
	up(t, d)
	q := question(0)
	exchange := func() {
		if err := d.WritePacket(q); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadPacket(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if n := testing.AllocsPerRun(100, exchange); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
