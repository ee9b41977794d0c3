package compare_test

import (
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/require"
)

// A settings is how the stacks of a world are set up, by the names below /proc/sys/net.
type settings map[string]string

// apply sets up a stack.
func (s settings) apply(t *testing.T, h *netns.Stack) {
	t.Helper()
	if err := h.Do(func() error {
		for name, v := range s {
			if name == "mtu" {
				if err := setMTU(v); err != nil {
					return err
				}
				continue
			}
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(v), 0); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Skip("this kernel has no such setting: ", err)
	}
}

// setMTU sets the length, in bytes, of the longest packet of the stack's interface.
func setMTU(v string) error {
	n, err := strconv.Atoi(v)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("net0")
	if err != nil {
		return err
	}
	req.SetUint32(uint32(n))
	return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req)
}

// fast has a connection begin with data in its SYN, where the client has a cookie for that.
func fast(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// beganWithData reports whether the other end has taken data with the SYN of c.
func beganWithData(t *testing.T, c net.Conn) (did bool) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const synData = 1 << 5 // TCPI_OPT_SYN_DATA
	if cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			did = info.Options&synData != 0
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return did
}

// Guests and clients are set up in other ways than a kernel is by default. All of them go
// on without a checkpoint, and without the primary.
func TestStacksOfOtherSettingsAreFoundEqual(t *testing.T) {
	key := settings{"ipv4/tcp_fastopen": "1027", "ipv4/tcp_fastopen_key": "1-2-3-4", "mptcp/enabled": "0"}
	for name, c := range map[string]struct {
		all, client, primary, secondary settings
		dialer                          net.Dialer
		v4only                          bool
		usual                           bool // it is tried each time
	}{
		"marks of congestion":             {all: settings{"ipv4/tcp_ecn": "1"}, usual: true},
		"marks, where they are asked for": {all: settings{"ipv4/tcp_ecn": "2"}},
		"a client that asks for marks":    {client: settings{"ipv4/tcp_ecn": "1"}},
		"no timestamps":                   {all: settings{"ipv4/tcp_timestamps": "0"}},
		"no timestamps of the client":     {client: settings{"ipv4/tcp_timestamps": "0"}},
		"no selective acknowledgments":    {all: settings{"ipv4/tcp_sack": "0"}},
		"no window scaling":               {all: settings{"ipv4/tcp_window_scaling": "0"}},
		"no options":                      {all: settings{"ipv4/tcp_window_scaling": "0", "ipv4/tcp_sack": "0", "ipv4/tcp_timestamps": "0"}, usual: true},
		"cookies in SYN|ACKs":             {all: settings{"ipv4/tcp_syncookies": "2"}, usual: true},
		"cookies, no timestamps":          {all: settings{"ipv4/tcp_syncookies": "2", "ipv4/tcp_timestamps": "0"}},
		"short packets":                   {all: settings{"mtu": "576"}, v4only: true},
		"long packets":                    {all: settings{"mtu": "9000"}},
		"a client of short packets":       {client: settings{"mtu": "1280"}},
		"other control of congestion":     {primary: settings{"ipv4/tcp_congestion_control": "reno"}, secondary: settings{"ipv4/tcp_congestion_control": "bbr"}},
		"data in the SYN":                 {all: key, dialer: net.Dialer{Control: fast}, usual: true},
		"data in the SYN, no timestamps":  {all: join(key, settings{"ipv4/tcp_timestamps": "0"}), dialer: net.Dialer{Control: fast}},
		"a small window of the client":    {client: settings{"ipv4/tcp_rmem": "4096 8192 8192"}},
		"small windows of the guests":     {primary: settings{"ipv4/tcp_rmem": "4096 8192 8192"}, secondary: settings{"ipv4/tcp_rmem": "4096 8192 8192"}},
		"path MTU probing":                {all: settings{"ipv4/tcp_mtu_probing": "2"}},
	} {
		for ip, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
			t.Run(strings.ReplaceAll(name, " ", "_")+"/"+ip, func(t *testing.T) {
				if c.v4only && ip == "IPv6" {
					t.Skip("IPv6 has no packets as short")
				}
				if !c.usual && !require.Wanted(require.NetNS) {
					t.Skip("with LOCKSTEP_REQUIRE=netns each of the settings")
				}
				w := newWorldOf(t, tap.Config{}, 1<<31+12345, func(l *link) {
					if c.dialer.Control != nil {
						l.loss = 0 // a stack that has lost a SYN with data sends none for long
					}
				})
				for _, h := range []*netns.Stack{w.client, w.primary, w.secondary} {
					c.all.apply(t, h)
				}
				c.client.apply(t, w.client)
				c.primary.apply(t, w.primary)
				c.secondary.apply(t, w.secondary)
				startServers(t, w)
				if c.dialer.Control != nil {
					// A stack whose address of IPv6 is not ready yet loses a packet: the guest that has not
					// seen the client ask for a cookie gives none, and the two SYN|ACKs differ.
					download(t, w.dialBy(t, net.Dialer{}, "tcp", at(addr)), 1000, 10, func() {})
				}
				var conn net.Conn
				begun := false
				for i := range 3 { // the first gets the cookie
					conn = w.dialBy(t, c.dialer, "tcp", at(addr))
					download(t, conn, 100_000+int64(i), uint64(i), func() {})
					begun = begun || beganWithData(t, conn)
				}
				if fast := c.dialer.Control != nil; fast != begun {
					t.Errorf("data was taken with a SYN: %t", begun)
				}
				download(t, conn, 1<<20, 11, func() {})
				upload(t, conn, 1<<20, 12, func() {})
				download(t, conn, 1<<20, 13, func() { w.cutOff(t) })
				upload(t, conn, 1<<20, 14, func() {})
				download(t, w.dialBy(t, c.dialer, "tcp", at(addr)), 100_000, 15, func() {})
				w.check(t)
			})
		}
	}
}

func join(a, b settings) settings {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}
