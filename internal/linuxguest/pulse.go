package linuxguest

import (
	"io"
	"net"
	"time"
)

// A machine whose CPU waits for an interrupt that the emulator has lost wakes with the
// next one: then the emulator looks at all that is pending. So one comes now and then, of
// a network card at which a frame arrives that means nothing. It goes to one of a
// machine's CPUs; a second one hears of what the first one does.

// pulseEvery is how long a lost interrupt holds a machine up at most: much less than
// what a test waits for, and so seldom that it costs a machine nothing.
const pulseEvery = 250 * time.Millisecond

// pulseMAC is the address of the card.
const pulseMAC = "52:54:00:99:00:01"

// pulseFrame is the frame, with its length in front as the emulator's stream has it.
var pulseFrame = func() (f [4 + 60]byte) {
	f[3] = 60
	copy(f[4:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x99, 0x00, 0x02, 0x88, 0xb5}) // for experiments
	return f
}()

// pulse sends the frame to a machine each time that every has passed, until ended is
// closed. Nothing is made of what the machine may send.
func pulse(socket string, every time.Duration, ended <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var conn net.Conn
	drained := make(chan struct{})
	defer func() {
		if conn != nil {
			conn.Close()
			<-drained
		}
	}()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		if conn == nil {
			var err error
			if conn, err = net.Dial("unix", socket); err != nil {
				conn = nil // not there yet
				continue
			}
			go func() {
				defer close(drained)
				io.Copy(io.Discard, conn) // to its end
			}()
		}
		// A machine that does not take it has enough of them waiting.
		conn.SetWriteDeadline(time.Now().Add(every))
		conn.Write(pulseFrame[:])
	}
}
