package proxy_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
)

// An ordealWay is what the guest of a host agrees upon in a SYN.
type ordealWay struct {
	mss    uint16
	scale  byte // of its window, or noScale
	sack   bool // it permits selective acknowledgments
	stamps bool
}

const noScale = 0xff

var usualWay = ordealWay{1460, ordealScale, true, true}

// shift returns by how much a window is shifted.
func (w ordealWay) shift() byte {
	if w.scale == noScale {
		return 0
	}
	return w.scale
}

// edge returns the end of the window that a segment offers to a client.
func (s *ordealSegment) edge(c *ordealClient) uint32 { return s.ack - c.life + uint32(s.win)<<c.scale }

// options returns the options of a segment.
func (s *ordealSegment) options() (b []byte) {
	if s.flags&packet.SYN != 0 {
		b = binary.BigEndian.AppendUint16([]byte{2, 4}, s.way.mss)
		if s.way.scale != noScale {
			b = append(b, 1, 3, 3, s.way.scale)
		}
		if s.way.sack {
			b = append(b, 1, 1, 4, 2)
		}
	}
	if s.stamp != 0 {
		b = binary.BigEndian.AppendUint32(append(b, 1, 1, 8, 10), s.stamp)
		b = binary.BigEndian.AppendUint32(b, s.echo)
	}
	return b
}

// No two guests agree upon the same in a SYN, since their hosts' devices say so, or their settings. What leaves to
// the client is what each guest that may go on has agreed upon, and connections are served as others are.
// Each needs a checkpoint as it begins, and no more.
func TestGuestsThatAgreeOnOtherOptionsServeEachConnection(t *testing.T) {
	for name, way := range map[string]func(host uint32) ordealWay{
		"greatest segments":         func(host uint32) ordealWay { w := usualWay; w.mss -= uint16(host % 7); return w },
		"scales":                    func(host uint32) ordealWay { w := usualWay; w.scale = byte(host % 14); return w },
		"scales or none":            func(host uint32) ordealWay { w := usualWay; w.scale = []byte{noScale, 7}[host%2]; return w },
		"selective acknowledgments": func(host uint32) ordealWay { w := usualWay; w.sack = host%2 == 0; return w },
		"timestamps":                func(host uint32) ordealWay { w := usualWay; w.stamps = host%2 == 0; return w },
		"all of them": func(host uint32) ordealWay {
			return ordealWay{uint16(1400 - host), byte(host % 14), host%2 == 0, host%4 < 2}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			failovers := 0
			for seed := range require.Many[uint64](3, 12, 400) {
				o := runOrdeal(t, seed, 400, func(o *ordeal) { o.way = way })
				if o.wrong != "" {
					t.Fatalf("seed %d: %s\n%s", seed, o.wrong, strings.Join(o.trace, "\n"))
				}
				failovers += o.failovers
				o = runOrdeal(t, seed, 0, func(o *ordeal) { o.way, o.mode, o.lossy = way, "compare", false })
				if o.wrong != "" {
					t.Fatalf("seed %d: %s\n%s", seed, o.wrong, strings.Join(o.trace, "\n"))
				}
				if o.asks == 0 || o.asks > len(o.clients) {
					t.Errorf("seed %d: %d checkpoints were asked for by %d connections", seed, o.asks, len(o.clients))
				}
			}
			if failovers == 0 {
				t.Error("no host died")
			}
		})
	}
}
