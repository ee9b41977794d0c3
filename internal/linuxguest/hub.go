package linuxguest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Frames is one end of a cable: filter.Conn over a stream, or a tap.Device.
type Frames interface {
	ReadPacket() ([]byte, error)
	WritePacket([]byte) error
}

// A Hub is an Ethernet switch: it learns behind which port an address is from
// the frames that come from there, and sends a frame to all other ports if it
// has not learned its destination. The zero Hub has no ports.
type Hub struct {
	mu    sync.Mutex
	ports map[*port]bool
	table map[[6]byte]*port
}

// port is where a machine's network card is connected to a Hub.
type port struct {
	name  string
	queue chan []byte

	last          time.Time // of a frame from there
	frames, bytes uint64    // from there
	lost          uint64    // to there: the queue was full
}

// PortStats counts what has happened at a port.
type PortStats struct {
	Frames, Bytes uint64 // that came from there
	Lost          uint64 // that were to go there and found no room
	Last          time.Time
}

// queueLength is how many frames wait at a port before more are lost.
const queueLength = 4096

// Serve plugs in a cable and returns when reading or writing it fails, or when
// ctx ends, with the reason. It closes the cable. The addresses that were learned
// to be behind the port are forgotten.
func (h *Hub) Serve(ctx context.Context, name string, cable Frames, closer io.Closer) error {
	p := &port{name: name, queue: make(chan []byte, queueLength)}
	h.mu.Lock()
	if h.ports == nil {
		h.ports, h.table = make(map[*port]bool), make(map[[6]byte]*port)
	}
	h.ports[p] = true
	h.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { closer.Close() })
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case frame := <-p.queue:
				if err := cable.WritePacket(frame); err != nil {
					cancel(err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := h.read(p, cable)
	cancel(err)
	writer.Wait()
	stop()

	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ports, p)
	for mac, at := range h.table {
		if at == p {
			delete(h.table, mac)
		}
	}
	return errors.Join(context.Cause(ctx), closer.Close())
}

func (h *Hub) read(p *port, cable Frames) error {
	for {
		frame, err := cable.ReadPacket()
		if err != nil {
			return err
		}
		if len(frame) >= 14 {
			h.forward(p, frame)
		}
	}
}

func (h *Hub) forward(from *port, frame []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from.last = time.Now()
	from.frames++
	from.bytes += uint64(len(frame))
	if frame[6]&1 == 0 {
		h.table[[6]byte(frame[6:12])] = from
	}
	frame = append([]byte(nil), frame...)
	if to, ok := h.table[[6]byte(frame[:6])]; ok {
		if to != from {
			to.put(frame)
		}
		return
	}
	for to := range h.ports {
		if to != from {
			to.put(frame)
		}
	}
}

func (p *port) put(frame []byte) {
	select {
	case p.queue <- frame:
	default:
		p.lost++
	}
}

// Stats returns the counts of a port that is plugged in.
func (h *Hub) Stats(name string) (s PortStats, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.ports {
		if p.name == name {
			return PortStats{p.frames, p.bytes, p.lost, p.last}, true
		}
	}
	return s, false
}

// Behind returns the name of the port behind which an address was last seen, ""
// for none.
func (h *Hub) Behind(mac [6]byte) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.table[mac]; p != nil {
		return p.name
	}
	return ""
}
