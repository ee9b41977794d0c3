package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"github.com/gocolo/lockstep/event/qmp"
)

// reserved is the file that keeps space for the guest.
const reserved = ".reserved"

// need returns how much space a guest may need in a file: each page has a header.
func need(ram, state uint64) uint64 { return ram + ram/256 + state + 1<<20 }

// first is called when the guest is protected, to find out now whether there is space to
// write it to a file later.
func (s *standbyRun) first() {
	in, err := s.guest.Info()
	if err != nil {
		return
	}
	want := need(in.RAM, in.State)
	if s.reserve {
		if err := allocate(filepath.Join(s.state, reserved), want); err != nil {
			s.p.warn("-reserve: %s in %s: %v", size(want), s.state, err)
			s.p.object(map[string]any{"space": map[string]any{"need": want, "error": err.Error()}})
			return
		}
		s.p.say("reserved    %s in %s", size(want), s.state)
		s.p.object(map[string]any{"space": map[string]any{"need": want, "reserved": true}})
		return
	}
	free, err := freeIn(s.state)
	if err != nil {
		return
	}
	s.p.object(map[string]any{"space": map[string]any{"need": want, "free": free}})
	if free < want {
		s.p.warn("%s has %s free, and the guest may need %s: until there is more it can be brought back, but not saved", s.state, size(free), size(want))
	}
}

// tokenOf returns the token of this host's claims for the guest whose monitor is at addr. A
// monitor has one client, so only one process uses the token at a time. It stays the same
// when that process is started again, and changes with a reboot, which ends all guests.
func tokenOf(addr string) string {
	network, address := qmp.Split(addr)
	if abs, err := filepath.Abs(address); network == "unix" && err == nil {
		address = abs
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	sum := sha256.Sum256([]byte(strings.Join([]string{hostName(), strings.TrimSpace(string(boot)), network, address}, "\n")))
	return hex.EncodeToString(sum[:16])
}
