package colo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// How a drawn secondary ends its session.
const (
	wrongWord = "another word"
	twoWords  = "a word too many"
	goesAway  = "the end of the connection"
	halfWord  = "half of a word"
	silence   = "nothing"
	saysBye   = "goodbye"
)

// A drawnSecondary answers its primary in each of its steps, until it does something that is drawn.
type drawnSecondary struct {
	drawn  []byte
	grants bool

	end, op  string
	got      colo.Message
	at, sent int64  // where got is among what was sent, and how much was sent
	received uint64 // checkpoints that it has said to have, the first state among them
}

func (d *drawnSecondary) draw(n int) int {
	if len(d.drawn) == 0 {
		return 0
	}
	b := int(d.drawn[0])
	d.drawn = d.drawn[1:]
	return b % n
}

// answer returns what it says in a step of the primary; ends is true if nothing more comes.
func (d *drawnSecondary) answer(op string) (say []byte, ends bool) {
	want := map[string]colo.Message{
		"expect checkpoint-ready": colo.CheckpointReady, "expect checkpoint-reply": colo.CheckpointReply,
		"expect vmstate-received": colo.VMStateReceived, "expect vmstate-loaded": colo.VMStateLoaded,
	}[op]
	wanted := []colo.Message{want}
	if want == colo.CheckpointReady {
		if d.draw(2) == 0 {
			say = slices.Concat(be32(uint32(colo.Hello)), be64([]uint64{0, 1, uint64(time.Minute), 1 << 63, 1<<64 - 1}[d.draw(5)]))
		} else {
			wanted = append(wanted, colo.Hello)
		}
	}
	defer func() { d.sent += int64(len(say)) }()
	d.op, d.at = op, d.sent+int64(len(say))
	wrong := func(not ...colo.Message) colo.Message {
		words := []colo.Message{0, 2, 5, 6, 1, 3, 4, 7, 1<<32 - 1, colo.Hello, colo.Alive, colo.DirtyPages, colo.UseChannels, colo.TakeEarly, colo.EarlyPages}
		words = slices.DeleteFunc(words, func(m colo.Message) bool { return slices.Contains(not, m) })
		return words[d.draw(len(words))]
	}
	how := d.draw(24)
	if how < 6 {
		d.end = []string{wrongWord, twoWords, goesAway, halfWord, silence, saysBye}[how]
	}
	switch d.end {
	case wrongWord:
		d.got = wrong(wanted...)
		return append(say, be32(uint32(d.got), 0, 0)...), true
	case goesAway, silence:
		return say, true
	case halfWord:
		return append(say, be32(uint32(want))[:1+d.draw(3)]...), true
	case saysBye:
		n := []uint32{0, 3, 1 << 10, 1<<10 + 1, 1 << 31}[d.draw(5)]
		return slices.Concat(say, be32(uint32(colo.Goodbye), n), bytes.Repeat([]byte{27}, int(min(n, 2000)))), true
	}
	say = append(say, be32(uint32(want))...)
	if want == colo.VMStateReceived || want == colo.CheckpointReady {
		d.received++
	}
	if d.end == twoWords {
		d.got, d.at = wrong(colo.VMStateLoaded), d.at+4 // which may come with vmstate-received
		return append(say, be32(uint32(d.got))...), true
	}
	return say, false
}

// hearsADrawnSecondary has a primary hear one, and returns it.
func hearsADrawnSecondary(t *testing.T, drawn []byte) *drawnSecondary {
	t.Helper()
	d := &drawnSecondary{drawn: drawn}
	d.grants = d.draw(3) != 1
	steps := d.draw(20)
	h := newHost(t, &world{cfg: small}, "primary")
	defer h.close()
	pc, sc := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	var cause error
	asked := 0
	asks := make(chan string, 1)
	cfg := h.primary()
	cfg.Step = func(op string, _ uint64) {
		h.step(1)
		if strings.HasPrefix(op, "expect ") {
			asks <- op
		}
	}
	cfg.Arbiter = colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
		asked++
		cause = c.Cause
		if !d.grants {
			return colo.ErrRefused
		}
		return nil
	})
	if err := h.guest.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := colo.NewPrimary(pc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.run(t.Context(), p)
	go io.Copy(io.Discard, sc)
	for n := 0; ; n++ {
		op := <-asks
		synctest.Wait() // it has sent what it has to send, and waits
		if n == steps && d.end == "" {
			d.drawn = []byte{1, byte(d.draw(6))}
		}
		say, ends := d.answer(op)
		if sc.Write(say); ends {
			break
		}
	}
	if d.end != silence {
		synctest.Wait()
		sc.Close()
	}
	err = h.wait()
	sc.Close()

	h.step(3)
	runs := !h.guest.Paused()
	switch bye := d.end == saysBye; {
	case bye != (asked == 0):
		t.Errorf("the arbiter was asked %d times", asked)
	case runs != (bye || d.grants):
		t.Errorf("the guest runs: %v, %v", runs, err)
	case runs && h.net.Held() > 0:
		t.Errorf("%d frames are held", h.net.Held())
	case bye && d.op == "expect checkpoint-ready":
		if !errors.Is(err, colo.ErrGoodbye) {
			t.Errorf("a secondary that has taken nothing: %v", err)
		}
	case runs != (err == nil), !runs && !errors.Is(err, colo.ErrRefused):
		t.Errorf("the guest runs: %v, %v", runs, err)
	}
	var received uint64
	for _, c := range h.net.Calls() {
		if c.Name == "received" {
			received++
		}
	}
	if received != d.received {
		t.Errorf("output was let go for %d states, the secondary has said that it has %d", received, d.received)
	}
	wantInTurn(t, h.net)
	if d.end != saysBye {
		d.wantCause(t, cause)
	}
	return d
}

// wantCause checks what the session told of its end.
func (d *drawnSecondary) wantCause(t *testing.T, cause error) {
	t.Helper()
	var e *colo.Error
	if !errors.As(cause, &e) || e.Mode != event.ModePrimary || d.end != twoWords && e.Op != d.op {
		t.Errorf("it ended with %v, want it to name %q", cause, d.op)
		return
	}
	var m *colo.MessageError
	switch d.end {
	case wrongWord, twoWords:
		if !errors.As(cause, &m) || m.Got != d.got || m.Offset != d.at {
			t.Errorf("it ended with %v, want it to name %v at offset %d", cause, d.got, d.at)
		}
	case silence:
		if !errors.Is(cause, colo.ErrTimeout) {
			t.Errorf("a silent secondary: %v", cause)
		}
	default:
		if !errors.Is(cause, io.EOF) && !errors.Is(cause, io.ErrUnexpectedEOF) {
			t.Errorf("a secondary that goes away: %v", cause)
		}
	}
}

func TestAPrimaryLetsGoOnlyWhatWasReceivedWhateverIsAnswered(t *testing.T) {
	ends := map[string]int{}
	for seed := range uint64(require.Many(60, 500, 5000)) {
		rnd := rand.New(rand.NewPCG(seed, 78))
		drawn := make([]byte, 60)
		for i := range drawn {
			drawn[i] = byte(rnd.Uint32())
		}
		synctest.Test(t, func(t *testing.T) {
			d := hearsADrawnSecondary(t, drawn)
			if ends[d.end]++; t.Failed() {
				t.Fatalf("seed %d: %s at %q, granted %v", seed, d.end, d.op, d.grants)
			}
		})
	}
	if len(ends) < 6 {
		t.Errorf("only %v were tried", ends)
	}
}
