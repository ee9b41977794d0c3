package colo_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
	"unicode"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/damage"
)

// FuzzLink: whatever a peer says, a link reads what was expected or says what
// came instead; what it reads, it writes in the same words.
func FuzzLink(f *testing.F) {
	f.Add(be32(0, 1, 2, 3, 5, 6))
	f.Add(slices.Concat(be32(4), be64(1<<62)))
	f.Add(be32(7))
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		l := colo.NewLink(&canned{Reader: bytes.NewReader(in)}, 0)
		var out bytes.Buffer
		echo := colo.NewLink(&sink{w: &out}, 0)
		rest := in
		for {
			want := colo.CheckpointReady
			if len(rest) >= 4 {
				want = colo.Message(binary.BigEndian.Uint32(rest))
			}
			var v uint64
			var err error
			if want == colo.VMStateSize {
				if v, err = l.ExpectValue(want); err == nil {
					err = echo.SendValue(want, v)
				}
			} else if err = l.Expect(want); err == nil {
				err = echo.Send(want)
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%d bytes before the end: %v", len(rest), err)
				}
				break
			}
			rest = in[l.R.Offset():]
		}
		if err := echo.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := out.Len(); !bytes.Equal(out.Bytes(), in[:n]) || len(in)-n >= 12 {
			t.Fatalf("read % x, wrote % x", in, out.Bytes())
		}
	})
}

// sink is a connection that is only written to.
type sink struct{ w io.Writer }

func (s *sink) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *sink) Write(b []byte) (int, error) { return s.w.Write(b) }
func (s *sink) Close() error                { return nil }

// FuzzAnswers: whatever a secondary says, a primary's guest runs when its session
// has ended, since the arbiter grants it or the secondary has said goodbye, and
// nothing that it held is left.
func FuzzAnswers(f *testing.F) {
	hello := slices.Concat(be32(uint32(colo.Hello)), be64(uint64(time.Minute)))
	for _, said := range [][]byte{
		nil, be32(0), slices.Concat(hello, be32(0)), slices.Concat(hello, be32(0, 2, 5, 6)),
		slices.Concat(hello, be32(uint32(colo.TakeEarly)), be64(1<<63), be32(0, 2, 5, 6)), slices.Concat(hello, be32(uint32(colo.TakeEarly), uint32(colo.TakeEarly))),
		slices.Concat(be32(0, 2), goodbye("why")), slices.Concat(hello, be32(0), goodbye("")),
		slices.Concat(be32(uint32(colo.Goodbye)), be32(1<<31)), slices.Concat(hello, hello), be32(uint32(colo.Alive)), goodbye("\x1b[2J"),
	} {
		f.Add(said)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		w := &world{cfg: small}
		h := newHost(t, w, "primary")
		defer h.close()
		cfg := h.primary()
		cfg.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error { return nil })
		cfg.EarlyShare, cfg.RAM = 1, h.saver
		if err := h.guest.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := colo.NewPrimary(&canned{Reader: bytes.NewReader(said)}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Run(t.Context())
		if h.guest.Paused() || p.Info().State != colo.StateAlone {
			t.Fatalf("the guest does not run: %v", err)
		}
		h.step(3)
		if n := h.net.Held(); n > 0 {
			t.Fatalf("%d frames are held: %v", n, err)
		}
		if err != nil {
			for _, r := range err.Error() {
				if !unicode.IsPrint(r) {
					t.Fatalf("%q is not for a terminal", err)
				}
			}
		}
	})
}

// goodbye returns the message of that name with a reason.
func goodbye(reason string) []byte {
	return slices.Concat(be32(uint32(colo.Goodbye)), be32(uint32(len(reason))), []byte(reason))
}

// FuzzAnnouncement: a description that was not made by us announces nothing or
// something that is bounded, and what was announced is read again.
func FuzzAnnouncement(f *testing.F) {
	f.Add([]byte(`{"page_size": 4096, "devices": []}`))
	f.Add([]byte(`{"lockstep": {"version": 1, "checkpoint-timeout": -5}}`))
	f.Add([]byte(`{"lockstep": {"version": 1, "checkpoint-timeout": 9223372036854775807}}`))
	f.Add([]byte(`{"lockstep": {"version": 2}}`))
	f.Add([]byte(`{"lockstep": null}}`))
	f.Add([]byte(`}{`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if d, ok := colo.Announced(text); ok && (d < 0 || d > 24*time.Hour) {
			t.Fatalf("%q announces %v", text, d)
		}
		with := colo.Announce(text, time.Second)
		if d, ok := colo.Announced(with); json.Valid(text) && len(text) > 2 && text[0] == '{' && !bytes.Contains(text, []byte("lockstep")) && bytes.Contains(text, []byte(`"page_size"`)) && (!ok || d != time.Second) {
			t.Fatalf("%q announces %v", with, d)
		}
	})
}

// FuzzSecondary: whatever a peer sends as a checkpoint, the secondary's guest is
// that of the last whole checkpoint, and can go on.
func FuzzSecondary(f *testing.F) {
	r := record(f)
	f.Add(r.second(r.ram, r.devices))
	f.Add(slices.Concat(early(r.part(page(0x1000|0x08, colotest.Block))), early(), r.second(r.ram, r.devices)))
	for _, c := range badCheckpoints {
		if b := c.bad(r); len(b) < 3*4096 {
			f.Add(b)
		}
	}
	second := r.second(r.ram, r.devices)
	for _, b := range damage.Copies(1, 20, damage.Input{Bytes: second, Cuts: marks(second, r.ramID)}) {
		f.Add(b)
	}
	good, err := feed(f, slices.Concat(r.initial, r.first), options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) { goesOnAsItWas(t, r, good, in) })
}

// goesOnAsItWas has a secondary that has committed one checkpoint, as good has, take another.
func goesOnAsItWas(t *testing.T, r recording, good *victim, in []byte) {
	t.Helper()
	v, err := feed(t, slices.Concat(r.initial, r.first, in), options{})
	defer v.close()
	if errors.Is(err, colo.ErrGoodbye) && v.guest.Paused() {
		return // the peer said so
	}
	if err != nil {
		t.Fatalf("takeover: %v", err)
	}
	if v.committed() == 1 && (!bytes.Equal(v.memory, good.memory) || !slices.Equal(v.rounds, good.rounds)) {
		t.Fatalf("the guest was touched by a checkpoint that failed: %v", v.cause)
	}
}
