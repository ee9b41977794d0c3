package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSockets bounds the lines that are read of the kernel's table of TCP sockets.
const maxSockets = 1 << 20

var errNotHere = errors.New("its monitor is not on this host, or its process is not seen from here: run check there, or -pid names the process")

// peerOf returns the process that has the other end of a TCP connection, if that is on this
// host and this process may see it.
func peerOf(conn *net.TCPConn) (int, error) {
	theirs, ours := addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		inode := socketOf(f, theirs, ours)
		f.Close()
		if inode != 0 {
			return holderOf(inode)
		}
	}
	return 0, errNotHere
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// socketOf finds the connection of two addresses in a table as /proc/net/tcp and tcp6 have
// it, and returns its inode; 0: it is not there.
func socketOf(table io.Reader, local, remote netip.AddrPort) uint64 {
	s := bufio.NewScanner(table)
	for i := 0; i < maxSockets && s.Scan(); i++ {
		f := strings.Fields(s.Text()) // sl local remote state queues timer retransmits uid timeout inode
		if len(f) < 10 || parseSocket(f[1]) != local || parseSocket(f[2]) != remote {
			continue
		}
		if inode, err := strconv.ParseUint(f[9], 10, 64); err == nil {
			return inode
		}
	}
	return 0
}

// parseSocket reads an address and port in hexadecimal, each 32 bits of the address in the
// order of this machine. What is none is the zero AddrPort.
func parseSocket(s string) netip.AddrPort {
	host, port, ok := strings.Cut(s, ":")
	if !ok || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}
	}
	var ip []byte
	for ; host != ""; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}
		}
		ip = binary.NativeEndian.AppendUint32(ip, uint32(word))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	addr, ok := netip.AddrFromSlice(ip)
	if err != nil || !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n))
}

// holderOf returns the process that has a socket open. It fails if several have, as after a
// fork, since it cannot know which of them serves.
func holderOf(inode uint64) (pid int, err error) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, dir := range processes {
		open, err := os.ReadDir(dir + "/fd")
		if err != nil { // it has ended, or is somebody else's
			continue
		}
		for _, fd := range open {
			if to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err != nil || to != want {
				continue
			}
			n, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				return 0, err
			}
			if pid != 0 {
				return 0, fmt.Errorf("processes %d and %d both have its monitor's connection (-pid names the QEMU's)", pid, n)
			}
			pid = n
			break
		}
	}
	if pid == 0 {
		return 0, errNotHere
	}
	return pid, nil
}
