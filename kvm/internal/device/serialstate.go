package device

import "github.com/gocolo/lockstep/vmstate"

// Save implements State.
func (s *Serial) Save() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = s.serialState
	if s.stuck { // by this host's console; another's will be asked
		s.saved.transmit = true
	}
}

// Apply implements State.
func (s *Serial) Apply() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serialState = s.saved
	s.stuck = false
	s.irq.force(s.cause() != iirNone)
}

// VMState implements vmstate.Device.
func (s *Serial) VMState(f *vmstate.Fields) {
	d := &s.saved
	f.Uint8("ier", &d.ier)
	f.Uint8("fcr", &d.fcr)
	f.Uint8("lcr", &d.lcr)
	f.Uint8("mcr", &d.mcr)
	f.Uint8("scr", &d.scr)
	f.Uint8("dll", &d.dll)
	f.Uint8("dlm", &d.dlm)
	f.Bool("transmit_pending", &d.transmit)
	f.Uint32("waiting", &d.n)
	f.Bytes("input", vmstate.Elems(f, d.input[:], uint64(d.n)))
}
