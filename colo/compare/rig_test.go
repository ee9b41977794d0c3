package compare_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// rig drives an engine and writes down what it does.
type rig struct {
	*compare.Engine
	t   *testing.T
	now time.Time
}

func newRig(t *testing.T, cfg compare.Config) *rig {
	return &rig{compare.NewEngine(cfg), t, time.Unix(1000, 0)}
}

// show names a frame by its data.
func show(r compare.Result) string {
	var out []string
	for _, f := range r.Release {
		var p packet.Packet
		p.Parse(f.Data[f.VNetHdr:])
		switch {
		case p.IsTCP():
			h := p.TCP()
			s := string(h.Payload())
			for _, f := range []struct {
				bit  uint8
				name string
			}{{packet.SYN, "SYN"}, {packet.FIN, "FIN"}, {packet.RST, "RST"}} {
				if h.Flags()&f.bit != 0 {
					s += f.name
				}
			}
			if s == "" {
				s = fmt.Sprint("ack", h.Ack())
			}
			out = append(out, s)
		case p.Proto == packet.ProtoUDP:
			out = append(out, string(p.UDP()[8:]))
		default:
			out = append(out, fmt.Sprintf("type%x", p.Type))
		}
	}
	s := strings.Join(out, " ")
	if r.Diverged {
		s += " !" + r.Reason.String()
	}
	if r.Full {
		s += " full"
	}
	return strings.TrimSpace(s)
}

func (x *rig) want(why string, r compare.Result, want string) {
	x.t.Helper()
	if got := show(r); got != want {
		x.t.Errorf("%s: %q, want %q", why, got, want)
	}
}

func (x *rig) p(s seg) compare.Result { return x.Primary(s.frame(), x.now) }

func (x *rig) s(s seg) compare.Result { return x.Secondary(s.frame(), x.now) }

func (x *rig) mark(e uint64) {
	x.t.Helper()
	if err := x.Mark(e); err != nil {
		x.t.Fatal(err)
	}
}

func (x *rig) received(e uint64) compare.Result {
	x.t.Helper()
	r, err := x.Received(e)
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}
