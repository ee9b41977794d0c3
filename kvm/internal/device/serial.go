package device

import (
	"sync"
)

// Registers of a 16550A. While LCR has its bit lcrDivisor the first two have the divisor of
// the speed.
// (National Semiconductor PC16550D data sheet.)
const (
	uartData = 0
	uartIER  = 1
	uartIIR  = 2 // read
	uartFCR  = 2 // written
	uartLCR  = 3
	uartMCR  = 4
	uartLSR  = 5
	uartMSR  = 6
	uartSCR  = 7

	ierReceive  = 0x01
	ierTransmit = 0x02
	ierModem    = 0x08

	iirNone     = 0x01
	iirTransmit = 0x02
	iirReceive  = 0x04
	iirFIFOs    = 0xc0

	fcrEnable       = 0x01
	fcrClearReceive = 0x02

	lcrDivisor = 0x80

	mcrLoop = 0x10

	lsrReady     = 0x01
	lsrEmpty     = 0x20 // the holding register
	lsrAllEmpty  = 0x40 // the shift register, too
	msrConnected = 0xb0 // carrier, data set ready, clear to send
)

// SerialPorts is the number of ports of a Serial.
const SerialPorts = 8

// How much waits in a Serial at most, in bytes: input for the guest, and output for
// the console.
const (
	serialInput  = 4096
	serialOutput = 16384
)

// Serial is a 16550A. What the guest writes is for the Console; while that is full,
// the transmitter is busy. Input waits in the port until the guest reads it.
type Serial struct {
	mu    sync.Mutex
	irq   irq
	out   *Console
	stuck bool // the guest has seen, or will see, a busy transmitter
	serialState
	saved serialState
}

// serialState is the state of a Serial, but for its output, which has left.
type serialState struct {
	ier, fcr, lcr, mcr, scr uint8
	dll, dlm                uint8
	transmit                bool // the interrupt of an empty transmitter is due
	n                       uint32
	input                   [serialInput]byte // n bytes
}

// NewSerial returns a serial port.
func NewSerial(out *Console, line Line) *Serial {
	s := &Serial{out: out, irq: irq{line: line}}
	s.dll = 1 // 115,200 baud
	return s
}

// In implements Ports.
func (s *Serial) In(off uint16, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ones(p)
	divisor := s.lcr&lcrDivisor != 0
	switch off {
	case uartData:
		if divisor {
			p[0] = s.dll
			break
		}
		p[0] = 0
		if s.n > 0 {
			p[0] = s.input[0]
			s.n = uint32(copy(s.input[:], s.input[1:s.n]))
		}
	case uartIER:
		if p[0] = s.ier; divisor {
			p[0] = s.dlm
		}
	case uartIIR:
		p[0] = s.cause()
		if p[0] == iirTransmit {
			s.transmit = false // reading acknowledges
		}
		if s.fcr&fcrEnable != 0 {
			p[0] |= iirFIFOs
		}
	case uartLCR:
		p[0] = s.lcr
	case uartMCR:
		p[0] = s.mcr
	case uartLSR:
		p[0] = 0
		if s.n > 0 {
			p[0] |= lsrReady
		}
		if s.busy() {
			break
		}
		p[0] |= lsrEmpty | lsrAllEmpty
	case uartMSR:
		p[0] = msrConnected
		if s.mcr&mcrLoop != 0 { // outputs are inputs: RTS, DTR, OUT1, OUT2
			p[0] = s.mcr&0x0c<<4 | s.mcr&0x02<<3 | s.mcr&0x01<<5
		}
	case uartSCR:
		p[0] = s.scr
	}
	s.update()
}

// Out implements Ports.
func (s *Serial) Out(off uint16, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := p[0]
	divisor := s.lcr&lcrDivisor != 0
	switch off {
	case uartData:
		if divisor {
			s.dll = v
			break
		}
		if s.mcr&mcrLoop != 0 {
			s.receive(v)
		} else {
			s.out.put(v) // a guest that does not wait for the transmitter loses it
		}
		s.transmit = false
		s.update()
		s.transmit = !s.busy()
	case uartIER:
		if divisor {
			s.dlm = v
			break
		}
		if v&ierTransmit != 0 && s.ier&ierTransmit == 0 {
			s.transmit = !s.busy()
		}
		s.ier = v & 0x0f
	case uartFCR:
		if v&fcrClearReceive != 0 || (v^s.fcr)&fcrEnable != 0 {
			s.n = 0
		}
		s.fcr = v
	case uartLCR:
		s.lcr = v
	case uartMCR:
		s.mcr = v & 0x1f
	case uartSCR:
		s.scr = v
	}
	s.update()
	return nil
}

// cause returns the value of the interrupt identification register.
func (s *Serial) cause() uint8 {
	switch {
	case s.ier&ierReceive != 0 && s.n > 0:
		return iirReceive
	case s.ier&ierTransmit != 0 && s.transmit:
		return iirTransmit
	}
	return iirNone
}

func (s *Serial) update() { s.irq.set(s.cause() != iirNone) }

// busy reports whether the transmitter takes nothing. mu is held.
func (s *Serial) busy() bool {
	s.stuck = s.out.full()
	return s.stuck
}

// receive takes a byte from the line; false: there is no room. mu is held.
func (s *Serial) receive(v byte) bool {
	if s.n == serialInput {
		return false
	}
	s.input[s.n] = v
	s.n++
	return true
}

// Input gives the guest what is typed, and returns how many bytes there was room
// for; less than len(p) comes with ErrFull. While the gate is closed they wait.
// Any goroutine may call it.
func (s *Serial) Input(gate *Gate, p []byte) (n int, err error) {
	s.mu.Lock()
	for n < len(p) && s.receive(p[n]) {
		n++
	}
	in := gate.TryEnter() // if not, whoever opens the gate finds the input
	if in {
		s.update()
	}
	s.mu.Unlock()
	if in {
		gate.Leave()
	}
	if n < len(p) {
		err = ErrFull
	}
	return n, err
}

// Kick makes the port look at its console and input again, when the gate has been
// opened or the console has room.
func (s *Serial) Kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck && !s.busy() {
		s.transmit = true
	}
	s.update()
}
