package main

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/proxy"
)

// clockEvery is how many rounds the guest of a compared network runs between two
// looks at the clock. The two guests do the same from one look to the next.
const clockEvery = 100

// newCompared makes the network of a guest whose lines leave as soon as the guests of
// both hosts have said them. A line that only one has said leaves with the next
// checkpoint, which makes the guests equal again.
func newCompared(m *machine, w io.Writer) (*protect.Proxy, error) {
	uplink := newLines(w)
	uplink.header = len(header)
	cfg := protect.ProxyConfig{Uplink: uplink, Deliver: func([]byte) error { return nil }}
	cfg.Announce.Rounds = -1 // a terminal has no switches
	nic, err := protect.NewProxy(cfg)
	m.nic, m.clock = datagrams{nic}, clockEvery
	return nic, err
}

// datagrams is the guest's network stack: only datagrams and streams can be compared.
type datagrams struct{ nic *protect.Proxy }

// header is of Ethernet, IPv4 and UDP, from 10.0.0.1:9 to 10.0.0.2:9. Lengths and
// checksum are to be filled in.
const header = "\x52\x54\x00\x00\x00\x02\x52\x54\x00\x00\x00\x01\x08\x00" +
	"\x45\x00\x00\x00\x00\x00\x00\x00\x40\x11\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02" +
	"\x00\x09\x00\x09\x00\x00\x00\x00"

func (d datagrams) WritePacket(line []byte) error { return d.nic.WritePacket(datagram(line)) }

func datagram(line []byte) []byte {
	p := append([]byte(header), line...)
	ip := p[14:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return p
}

// report logs, a few times each second in which there are some, how many lines have
// left since the last report, and why.
func report(ctx context.Context, nic *protect.Proxy, log *slog.Logger) {
	var last proxy.PrimaryStats
	for tick := time.NewTicker(250 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		now, _ := nic.Stats()
		if now == nil {
			now = new(proxy.PrimaryStats) // this host follows
		}
		if now.Matched < last.Matched || now.Checkpoint < last.Checkpoint {
			last = proxy.PrimaryStats{} // the counts begin again when it leads
		}
		if match, checkpoint := now.Matched-last.Matched, now.Checkpoint-last.Checkpoint; match+checkpoint > 0 {
			log.Info("released", "at-match", match, "at-checkpoint", checkpoint)
		}
		last = *now
	}
}
