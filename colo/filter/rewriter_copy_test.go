package filter_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A twice gives each packet to two Rewriters. One of them changes the packets of the guest
// where they are, the other returns changed copies. Both must make the same of each.
type twice struct {
	t testing.TB
	*filter.Rewriter
	copies *filter.Rewriter
}

func newTwice(t testing.TB, cfg filter.RewriterConfig) *twice {
	r := filter.NewRewriter(cfg)
	cfg.Untranslatable = nil // once is enough
	return &twice{t, r, filter.NewRewriter(cfg)}
}

func (r *twice) Inbound(frame []byte, vnetHdr int) bool {
	f := bytes.Clone(frame)
	ok := r.Rewriter.Inbound(frame, vnetHdr)
	if r.copies.Inbound(f, vnetHdr) != ok || !bytes.Equal(f, frame) {
		r.t.Fatalf("%x goes to the guest, beside copies %x", frame, f)
	}
	return ok
}

func (r *twice) Outbound(frame []byte, vnetHdr int) []byte {
	was, f := bytes.Clone(frame), bytes.Clone(frame)
	early := r.Rewriter.Outbound(frame, vnetHdr)
	out, same := r.copies.OutboundCopy(f, vnetHdr)
	if !bytes.Equal(out, frame) || !bytes.Equal(early, same) {
		r.t.Fatalf("%x leaves, and %x is given; of a copy %x and %x", frame, early, out, same)
	}
	if !bytes.Equal(f, was) {
		r.t.Fatalf("%x has become %x", was, f)
	}
	return early
}

func (r *twice) Commit(epoch uint64) error { r.copies.Commit(epoch); return r.Rewriter.Commit(epoch) }

func (r *twice) Failover() error { r.copies.Failover(); return r.Rewriter.Failover() }

func TestOnlyWhatIsTranslatedIsCopied(t *testing.T) {
	for _, strict := range []bool{false, true} {
		r := filter.NewRewriter(filter.RewriterConfig{Strict: strict})
		r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, nil), 0)
		r.Outbound(segment(false, false, 9000, 501, synAck, nil, nil), 0)
		r.Inbound(segment(true, false, 501, 1001, packet.ACK, nil, nil), 0)
		f := append(make([]byte, 12), segment(false, false, 9001, 501, packet.ACK, nil, []byte("data"))...)
		was := slices.Clone(f)
		out, _ := r.OutboundCopy(f, 12)
		if &out[0] == &f[0] || !bytes.Equal(f, was) || numbers(t, out[12:]) != "1001/501" {
			t.Errorf("strict %v: % x leaves, in other memory: %v", strict, out, &out[0] != &f[0])
		}
		if n := testing.AllocsPerRun(100, func() { r.OutboundCopy(f, 12) }); n != 0 {
			t.Errorf("strict %v: %v allocations", strict, n)
		}
		r.Commit(0)
		if out, _ := r.OutboundCopy(f, 12); !strict && &out[0] != &f[0] {
			t.Error("a copy of what is not changed")
		}
		if out, _ := r.OutboundCopy(nil, 0); len(out) != 0 {
			t.Error("something of nothing")
		}
	}
}
