package main

import "path/filepath"

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
