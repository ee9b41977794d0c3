package device

import "github.com/gocolo/lockstep/internal/packet"

// A sending makes a frame for the uplink out of a driver's chain: in the memory of the uplink
// if that is a Composer, else in its own. It belongs to the goroutine that runs Work.
//
// The guest may change the memory of the chain at any moment. So each byte is read once, and
// only the copy is checked.
type sending struct {
	uplink  Uplink
	vnet    int                                             // length of the header before the uplink's frames
	frame   []byte                                          // memory for a frame, if the uplink has none
	compose func(n int, fill func(frame []byte) bool) error // the uplink's, or nil
	fill    func(frame []byte) bool

	// Of the present frame:
	mem      *Memory
	out      []segment
	header   int    // length of the driver's header
	features uint32 // that the driver has taken
	n        int    // length for the uplink
	good     bool   // it is no frame if this is false after send
}

func (w *sending) init(uplink Uplink, vnet int) {
	w.uplink, w.vnet = uplink, vnet
	w.fill = w.gather // once, since it takes memory
	if c, ok := uplink.(Composer); ok {
		w.compose = c.ComposePacket
	} else {
		w.frame = make([]byte, vnet+MaxBigFrame)
	}
}

// begin is called with a chain that has a header of so many bytes and a frame of a length
// that the card sends.
func (w *sending) begin(mem *Memory, c chain, header int, features uint32) {
	w.mem, w.out, w.header, w.features = mem, c.out, header, features
	w.n = w.vnet + int(size(c.out)) - header
	w.good = true // until it has been looked at
}

// send gives the uplink the frame. It returns the uplink's error if the uplink did not take
// the frame, or if the frame turned out not to be valid.
func (w *sending) send() error {
	if w.compose != nil {
		return w.compose(w.n, w.fill)
	}
	frame := w.frame[:w.n]
	if !w.gather(frame) {
		return ErrFrame
	}
	return w.uplink.WritePacket(frame)
}

// gather copies what the driver wants sent, behind the header that the uplink takes, and
// reports whether it is a frame.
func (w *sending) gather(frame []byte) bool {
	body := frame[w.vnet:]
	w.good = w.mem.gather(body, w.out, uint64(w.header)) == len(body)
	if w.vnet == 0 || !w.good {
		return w.good
	}
	h := packet.VNet(frame[:w.vnet])
	clear(h)
	w.mem.gather(h[:netHeader], w.out, 0)
	w.good = sends(w.features, h, body)
	return w.good
}
