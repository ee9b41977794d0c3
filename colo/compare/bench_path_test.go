package compare_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// An outlet is a network that takes packets and says when it has a number of them.
type outlet struct {
	n, want int
	there   chan struct{}
}

func (s *outlet) WritePacket([]byte) error {
	if s.n++; s.n == s.want {
		s.n = 0
		s.there <- struct{}{}
	}
	return nil
}

// A soleFrame is a connection that brings one frame.
type soleFrame struct {
	frame []byte
	done  bool
}

func (o *soleFrame) ReadPacket() ([]byte, error) {
	if o.done {
		return nil, io.EOF
	}
	o.done = true
	return o.frame, nil
}

// BenchmarkLargeSegments is the way of a segment of 64 KiB through a Comparer: a NIC gathers it from
// its guest's memory, that of the other guest comes from the connection and is compared, and Run
// writes it to the network. The bound is to gather both headers and data once, and to parse and
// compare. Of both the best turn counts. A segment is read by one who learns its length then only, into
// memory for the longest. Written segments are gathered and then given, and so copied twice.
func BenchmarkLargeSegments(b *testing.B) {
	for _, name := range []string{"composed", "read", "written"} {
		b.Run(name, func(b *testing.B) {
			const size, turn = 65000, 32
			cfg := everything()
			cfg.LowerAcks = true
			c := compare.NewComparer(cfg)
			if err := c.Mark(0); err != nil {
				b.Fatal(err)
			}
			if err := c.SecondaryMark(0); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			out, ended := &outlet{want: turn, there: make(chan struct{}, 1)}, make(chan struct{})
			go func() { defer close(ended); c.Run(ctx, out) }()
			defer func() { cancel(); <-ended }()
			s := seg{port: 1, seq: 1, ack: 1, flags: push, data: strings.Repeat("d", size)}
			ours, theirs := s.frame(), s.frame()
			mem, seq := make([]byte, len(ours.Data)), uint32(1)
			through := func() time.Duration {
				begin := time.Now()
				for range turn {
					setSeq(ours, seq)
					setSeq(theirs, seq)
					seq += size
					var err error
					switch name {
					case "composed":
						err = c.ComposePacket(len(ours.Data), 0, func(p []byte) bool { copy(p, ours.Data); return true })
					case "read":
						err = c.ComposeAtMost(longest, 0, func(p []byte) int { return copy(p, ours.Data) })
					default:
						copy(mem, ours.Data)
						err = c.WritePacket(mem)
					}
					if err != nil {
						b.Fatal(err)
					}
					if err := c.ServeSecondary(ctx, &soleFrame{frame: theirs.Data}); err != io.EOF {
						b.Fatal(err)
					}
				}
				<-out.there
				return time.Since(begin)
			}
			var gathering time.Duration
			bare := func() time.Duration {
				begin := time.Now()
				var p, q packet.Packet
				for range turn {
					copy(mem, ours.Data)
				}
				took := time.Since(begin)
				for range turn {
					p.Parse(mem)
					q.Parse(theirs.Data)
					if !bytes.Equal(p.TCP().Payload()[8:], q.TCP().Payload()[8:]) {
						b.Fatal("differ")
					}
				}
				if gathering == 0 || took < gathering {
					gathering = took
				}
				return time.Since(begin)
			}
			through()
			var ways, bares time.Duration
			for b.Loop() {
				if d := bare(); bares == 0 || d < bares {
					bares = d
				}
				if d := through(); ways == 0 || d < ways {
					ways = d
				}
			}
			b.ReportMetric(float64(ways.Nanoseconds())/turn, "ns/segment")
			b.ReportMetric(float64(bares)/float64(ways), "of-bare")                          // rate, to gathering and comparing
			b.ReportMetric(float64(bares-gathering)/float64(ways-gathering), "of-comparing") // rate without gathering, to comparing
		})
	}
}
