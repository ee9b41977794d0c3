package linuxguest

import (
	"io"
	"net"
	"time"
)

// A machine whose CPU waits for an interrupt that the emulator has lost wakes with the
// next one: then the emulator looks at all that is pending. So one comes now and then, of
// a serial line on which a byte arrives. It goes to a machine's first CPU; a second one
// hears of what the first one does.

// pulseEvery is how long a lost interrupt holds a machine up at most: much less than
// what a test waits for, and so seldom that it costs a machine nothing.
const pulseEvery = 250 * time.Millisecond

// pulse sends a byte on a machine's serial line again and again, until ended is closed.
// Nothing is read of what the machine may say there.
func pulse(socket string, ended <-chan struct{}) {
	tick := time.NewTicker(pulseEvery)
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
		conn.SetWriteDeadline(time.Now().Add(pulseEvery))
		conn.Write([]byte{'\n'})
	}
}
