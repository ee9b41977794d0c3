package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestAConnectionIsFoundInTheKernelsTable(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:115C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0100007F:115C 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 0 10 -1
   2: 0100007F:C350 0100007F:115C 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 20 4 0 10 -1
   3: 0000000000000000FFFF00000200007F:0001 0000000000000000FFFF00000100007F:0002 01 0:0 0:0 0 0 0 14
   4: 00000000000000000000000001000000:0001 00000000000000000000000001000000:0002 01 0:0 0:0 0 0 0 15
   5: 0100007F:0003
   6: 0100007F 0100007F:0001 01 0:0 0:0 0 0 0 16
   7: 0100007F:10000 0100007F:0001 01 0:0 0:0 0 0 0 17
   8: 0100007G:0001 0100007F:0001 01 0:0 0:0 0 0 0 18
`
	for _, c := range []struct {
		local, remote string
		inode         uint64
	}{
		{"127.0.0.1:4444", "127.0.0.1:50000", 12},
		{"127.0.0.1:50000", "127.0.0.1:4444", 13},
		{"127.0.0.2:1", "127.0.0.1:2", 14}, // of a socket that takes both kinds of addresses
		{"[::1]:1", "[::1]:2", 15},
		{"127.0.0.1:4444", "127.0.0.1:50001", 0},
		{"127.0.0.1:0", "127.0.0.1:1", 0},
	} {
		if got := socketOf(strings.NewReader(table), netip.MustParseAddrPort(c.local), netip.MustParseAddrPort(c.remote)); got != c.inode {
			t.Errorf("%s %s: %d, want %d", c.local, c.remote, got, c.inode)
		}
	}
}

// The process that has the other end is found, and it is not that of a QEMU.
func TestWhoServesATCPMonitorIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if pid, err := peerOf(conn.(*net.TCPConn)); err != nil || pid != os.Getpid() {
		t.Errorf("process %d, %v; this is %d", pid, err, os.Getpid())
	}
	if q, err := findQEMU(conn, "tcp:"+l.Addr().String(), 0); err == nil || !strings.Contains(err.Error(), "does not name it") {
		t.Errorf("%q, %v", q.args, err)
	}
}

// The command line is found from a monitor at TCP, too.
func TestCheckOffersTheCommandLineBehindATCPMonitor(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	// No other process listens at this address of loopback.
	addr := fmt.Sprintf("127.%d.%d.%d:4444", 1+rand.IntN(254), 1+rand.IntN(254), 1+rand.IntN(254))
	_, sock := monitored(t, "pc", "-device", "virtio-rng-pci,id=rng", "-qmp", "tcp:"+addr+",server=on,wait=off")
	var lines [2][]string
	for i, at := range []string{sock, "tcp:" + addr} {
		p := start(t, "check", "-json", "-qmp", at)
		p.ends(exitOK)
		var r finding
		if err := json.Unmarshal(p.object("check", 0), &r); err != nil {
			t.Fatal(err)
		}
		lines[i] = r.Command
	}
	if len(lines[0]) == 0 || !slices.Equal(lines[0], lines[1]) {
		t.Errorf("%q at its socket, %q over TCP", lines[0], lines[1])
	}
}
