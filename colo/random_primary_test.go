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

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A drawnPrimary is one whose words are drawn, right and wrong ones, and what is to become of its secondary: the model
// knows which checkpoints are whole, where the session ends, and by what.
type drawnPrimary struct {
	drawn []byte // what is drawn from; zeros when it is used up
	r     recording

	sent   []byte // after the initial stream
	limit  int    // where it is cut, in bytes of sent; negative: nowhere
	epoch  uint64 // committed
	memory []byte // as committed
	rounds uint64
	staged map[int]byte // pages of the checkpoint under way
	n      uint64       // and its rounds

	act, at string // what is done, and at which step
	in      uint64 // in which checkpoint
	grants  bool   // the arbiter does

	ops   []string     // where the session ends; one of them
	got   colo.Message // the word that ends it, if its place is known
	place int          // and where that is in sent; negative: not known
	bye   bool         // the primary said goodbye
	acted bool
}

func (d *drawnPrimary) draw(n int) int {
	if len(d.drawn) == 0 {
		return 0
	}
	b := int(d.drawn[0])
	d.drawn = d.drawn[1:]
	return b % n
}

// Where it acts, besides the steps of a session.
const (
	inReceived = "the write of vmstate-received"
	inCommit   = "the commit of the network"
)

var (
	actions   = []string{"", "", "", "failover", "lost", "end", "yield"}
	actPlaces = []string{"wait", "pause", "send checkpoint-reply", "expect vmstate-send", "stage ram", "stage device state", "stage disks", "commit", inReceived, inCommit, "resume", "send vmstate-loaded"}
)

// stops reports whether the session ends at a step since something is done there.
func (d *drawnPrimary) stops(op string) bool {
	epoch := d.epoch + 1
	if op == "wait" {
		epoch--
	}
	d.acted = d.act != "" && op == d.at && epoch == d.in
	if d.acted {
		d.ops = []string{op}
		switch op {
		case inReceived, inCommit: // the commit is done first
			d.ops = []string{"commit", "resume"}
		}
	}
	return d.acted
}

// ends notes that the session ends in one of ops.
func (d *drawnPrimary) ends(ops ...string) bool { d.ops = ops; return false }

// say sends bytes, and reports whether all of them come before the end of the connection.
func (d *drawnPrimary) say(b ...[]byte) bool {
	d.sent = append(d.sent, slices.Concat(b...)...)
	if d.limit >= 0 && len(d.sent) > d.limit {
		d.sent = d.sent[:d.limit]
		return false
	}
	return true
}

// pagesOf returns records of pages that the guest has, and their contents.
func (d *drawnPrimary) pagesOf() (b []byte, pages map[int]byte) {
	pages = map[int]byte{}
	for range d.draw(4) {
		i, fill := d.draw(len(d.memory)/ram.PageSize), byte(1+d.draw(255))
		p := page(uint64(i*ram.PageSize|0x08), colotest.Block)
		copy(p[len(p)-ram.PageSize:], bytes.Repeat([]byte{fill}, ram.PageSize))
		b, pages[i] = append(b, p...), fill
	}
	return b, pages
}

// wrong sends a word that is not the one that is waited for in op, or bytes that are no word.
func (d *drawnPrimary) wrong(op string, wanted ...colo.Message) bool {
	words := []colo.Message{0, 1, 2, 3, 4, 5, 6, 7, 1<<32 - 1, colo.Hello, colo.Alive, colo.Goodbye, colo.DirtyPages, colo.UseChannels, colo.TakeEarly, colo.EarlyPages}
	words = slices.DeleteFunc(words, func(m colo.Message) bool { return slices.Contains(wanted, m) })
	m := words[d.draw(len(words))]
	at := len(d.sent)
	if d.ops = []string{op}; !d.say(be32(uint32(m))) {
		return false
	}
	if d.got, d.place = m, at; m == colo.Goodbye {
		d.bye = true
		n := []int{0, 3, 1 << 10, 1<<10 + 1, 1 << 30}[d.draw(5)]
		d.say(be32(uint32(n)), bytes.Repeat([]byte{27}, min(n, 2<<10)))
	}
	d.say(be64(uint64(d.draw(256))), be32(3, 4, 0)) // whatever follows is not read
	return false
}

var badPages = [][]byte{
	page(1<<40|0x08, colotest.Block), page(0x08, "elsewhere"), page(0x800, ""), page(0x28, "")[:100],
	slices.Concat(be64(0x1000|0x80), be32(0)), slices.Concat(be64(0x1000|0x40), be32(0x01<<24|0xffff<<8)),
}

// early sends memory between two checkpoints.
func (d *drawnPrimary) early() bool {
	if !d.say(be32(uint32(colo.EarlyPages))) {
		return d.ends("wait")
	}
	b, pages := d.pagesOf()
	var bad []byte
	if d.draw(8) == 1 {
		bad = badPages[d.draw(len(badPages))]
	}
	whole := d.say(d.r.part(b, bad), []byte{0})
	if !whole || bad != nil {
		return d.ends("stage ram early")
	}
	for i, fill := range pages {
		d.staged[i] = fill
	}
	return true
}

// checkpoint sends one, and reports whether the secondary goes on after it.
func (d *drawnPrimary) checkpoint() bool {
	for d.draw(3) == 1 {
		if d.draw(3) == 1 {
			if !d.say(be32(uint32(colo.Alive))) {
				return d.ends("wait")
			}
		} else if !d.early() {
			return false
		}
	}
	if d.draw(16) == 1 {
		return d.wrong("wait", colo.CheckpointRequest, colo.Alive, colo.EarlyPages)
	}
	if !d.say(be32(uint32(colo.CheckpointRequest))) {
		return d.ends("wait")
	}
	if d.stops("pause") || d.stops("send checkpoint-reply") || d.stops("expect vmstate-send") {
		return false
	}
	if d.draw(16) == 1 {
		return d.wrong("expect vmstate-send", colo.VMStateSend)
	}
	if !d.say(be32(uint32(colo.VMStateSend))) {
		return d.ends("expect vmstate-send")
	}
	if d.stops("stage ram") {
		return false
	}
	b, pages := d.pagesOf()
	switch how := d.draw(16); {
	case how == 1:
		b = append(b, badPages[d.draw(len(badPages))]...)
		d.say(d.r.section(b), d.r.devices)
		return d.ends("stage ram")
	case how == 2 && d.at != "stage device state": // the word after the memory, before it: its first byte ends the memory
		d.say(be32(4), d.r.section(b))
		return d.ends("stage ram", "stage device state")
	}
	if !d.say(d.r.section(b)) {
		return d.ends("stage ram")
	}
	for i, fill := range pages {
		d.staged[i] = fill
	}
	if d.stops("stage device state") {
		return false
	}
	if d.draw(16) == 1 {
		return d.wrong("stage device state", colo.VMStateSize)
	}
	d.n = uint64(d.draw(256))
	devices := append(full(2, "vcpu", 0, 1, regs(d.n, 2, 3, 4, 0)), 0)
	size := uint64(len(devices))
	switch d.draw(16) {
	case 1:
		size = []uint64{0, 1, size - 1, size + 1, 256 << 20, 256<<20 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1}[d.draw(9)]
	case 2:
		devices[d.draw(2)*(len(devices)-2)]++ // the type, or the footer
	case 3:
		devices = append(full(9, "toaster", 0, 1, nil), 0)
		size = uint64(len(devices))
	}
	good := size == uint64(len(devices)) && devices[0] == 4 && devices[len(devices)-2] == 2
	if whole := d.say(be32(uint32(colo.VMStateSize)), be64(size), devices); !whole || !good {
		return d.ends("stage device state")
	}
	if d.stops("stage disks") || d.stops("commit") {
		return false
	}
	received, committed := d.stops(inReceived), false
	if !received {
		committed = d.stops(inCommit)
	}
	resume := !received && !committed && d.stops("resume")
	loaded := !received && !committed && !resume && d.stops("send vmstate-loaded")
	for i, fill := range d.staged {
		copy(d.memory[i*ram.PageSize:], bytes.Repeat([]byte{fill}, ram.PageSize))
	}
	d.epoch, d.rounds = d.epoch+1, d.n
	clear(d.staged)
	d.acted = received || committed || resume || loaded
	return !d.acted && !d.stops("wait")
}

// play draws what is said, and what becomes of it.
func (d *drawnPrimary) play() {
	d.staged, d.place, d.limit = map[int]byte{}, -1, -1
	d.act, d.grants = actions[d.draw(len(actions))], d.draw(4) != 1
	d.at, d.in = actPlaces[d.draw(len(actPlaces))], uint64(d.draw(3))
	if d.at != "wait" {
		d.in++
	}
	if d.draw(3) == 1 {
		d.limit = d.draw(256) | d.draw(256)<<8
	}
	if d.stops("wait") {
		return
	}
	for range 1 + d.draw(5) {
		if !d.checkpoint() {
			return
		}
	}
	d.ops = []string{"wait"}
}

// parts is a connection whose other end has said everything, in reads of so many bytes.
type parts struct {
	canned
	most    int
	written func(word uint32)
}

func (p *parts) Read(b []byte) (int, error) { return p.canned.Read(b[:min(p.most, len(b))]) }

func (p *parts) Write(b []byte) (int, error) {
	if len(b) == 4 && p.written != nil {
		p.written(uint32(b[3]))
	}
	return len(b), nil
}

// committing is a network that tells when it commits.
type committing struct {
	*colotest.Network
	commits func(uint64)
}

func (c committing) Commit(epoch uint64) error { c.commits(epoch); return c.Network.Commit(epoch) }

var errDrawn = errors.New("what was drawn")

// takesOnlyWhatIsWhole has a secondary hear a primary that was drawn.
func takesOnlyWhatIsWhole(t *testing.T, r recording, base *victim, drawn []byte) (d *drawnPrimary) {
	t.Helper()
	d = &drawnPrimary{drawn: drawn, r: r, memory: bytes.Clone(base.memory), rounds: base.rounds[0]}
	most := []int{13, 100, 1000, 4096, 1 << 20}[d.draw(5)]
	d.play()
	v := &victim{host: newHost(t, &world{cfg: small}, "secondary")}
	defer v.close()
	var s *colo.Secondary
	acted, asked := false, 0
	act := func(at string, epoch uint64) {
		if acted || d.act == "" || at != d.at || epoch != d.in {
			return
		}
		acted = true
		var err error
		switch d.act {
		case "failover":
			err = s.Failover()
		case "lost":
			s.Lost(errDrawn)
		case "end":
			err = s.End()
		case "yield":
			s.Yield(errDrawn)
		}
		if err != nil {
			t.Errorf("%s at %s: %v", d.act, at, err)
		}
	}
	cfg := v.secondary()
	cfg.Step = act
	cfg.Net = committing{v.net, func(epoch uint64) { act(inCommit, epoch) }}
	cfg.Arbiter = colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
		asked++
		v.cause = c.Cause
		if !v.guest.Paused() {
			t.Error("the arbiter was asked while the guest ran")
		}
		if !d.grants {
			return colo.ErrRefused
		}
		return nil
	})
	epoch := uint64(0)
	conn := &parts{canned{bytes.NewReader(slices.Concat(r.initial, d.sent))}, most, func(word uint32) {
		if word == uint32(colo.VMStateReceived) {
			epoch++
			act(inReceived, epoch)
		}
	}}
	var err error
	if s, err = colo.NewSecondary(conn, cfg); err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())

	memory, rounds := bytes.Clone(v.guest.Memory()), v.guest.Rounds()
	if !bytes.Equal(memory, d.memory) || rounds[0] != d.rounds || v.committed() != d.epoch || s.Info().Epoch != d.epoch {
		t.Errorf("the guest is not that of checkpoint %d: rounds %d and %d; %d committed: %v", d.epoch, rounds[0], d.rounds, v.committed(), err)
	}
	if err := v.cache.Flush(); !errors.Is(err, ram.ErrDiscarded) {
		t.Errorf("what was staged could still become the guest's: %v", err)
	}
	if acted != d.acted {
		t.Errorf("something was done: %v; want %v", acted, d.acted)
	}
	stays := d.bye || acted && (d.act == "end" || d.act == "yield")
	switch {
	case stays != (asked == 0):
		t.Errorf("the arbiter was asked %d times", asked)
	case !stays && d.grants:
		if err != nil || v.guest.Paused() {
			t.Errorf("the guest was granted, and paused is %v: %v", v.guest.Paused(), err)
		}
	case !v.guest.Paused() || err == nil:
		t.Errorf("a guest runs that may not: %v", err)
	case !stays && !errors.Is(err, colo.ErrRefused), d.bye && !errors.Is(err, colo.ErrGoodbye):
		t.Errorf("it ended with %v", err)
	}
	d.wantCause(t, len(r.initial), v.cause, err)
	return d
}

// wantCause checks what a session said of its end: to the arbiter, or else to who called Run.
func (d *drawnPrimary) wantCause(t *testing.T, initial int, cause, err error) {
	t.Helper()
	if cause == nil {
		cause = err
	}
	var e *colo.Error
	if !errors.As(cause, &e) || e.Mode != event.ModeSecondary || !slices.Contains(d.ops, e.Op) {
		t.Errorf("it ended with %v, want it to say that it was in one of %q", cause, d.ops)
		return
	}
	if between := e.Op == "wait" || e.Op == "stage ram early"; !d.acted && e.Epoch != d.epoch+1 && !(between && e.Epoch == d.epoch) {
		t.Errorf("it says %v, after checkpoint %d", cause, d.epoch)
	}
	var m *colo.MessageError
	switch {
	case d.acted:
		want := map[string]error{"failover": colo.ErrFailover, "lost": errDrawn, "end": colo.ErrGoodbye, "yield": errDrawn}[d.act]
		if !errors.Is(cause, want) {
			t.Errorf("%s at %s: it ended with %v", d.act, d.at, cause)
		}
	case d.bye:
	case d.place >= 0:
		if !errors.As(cause, &m) || m.Got != d.got || m.Offset != int64(initial+d.place) {
			t.Errorf("it ended with %v, want it to name %v at offset %d", cause, d.got, initial+d.place)
		}
	case d.limit >= 0 && len(d.sent) == d.limit:
		if !errors.Is(cause, io.EOF) && !errors.Is(cause, io.ErrUnexpectedEOF) && !strings.Contains(cause.Error(), "stage") {
			t.Errorf("a stream that was cut ended with %v", cause)
		}
	}
}

// whole returns a secondary that has taken the initial stream, and nothing else.
func whole(t testing.TB, r recording) *victim {
	t.Helper()
	v, err := feed(t, r.initial, options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestASecondaryTakesOnlyWhatIsWholeOfWhateverIsSaid(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	base := whole(t, r)
	defer base.close()
	before := leaks.Now(t)
	commits, acts := 0, map[string]int{}
	for seed := range uint64(require.Many(80, 1500, 20000)) {
		rnd := rand.New(rand.NewPCG(seed, 77))
		drawn := make([]byte, 120)
		for i := range drawn {
			drawn[i] = byte(rnd.Uint32())
		}
		d := takesOnlyWhatIsWhole(t, r, base, drawn)
		if commits += int(d.epoch); d.acted {
			acts[d.act]++
		}
		if t.Failed() {
			t.Fatalf("seed %d: %s at %q of %d, cut %d, ends in %q", seed, d.act, d.at, d.in, d.limit, d.ops)
		}
	}
	before.Check(t, "sessions of all kinds")
	if commits == 0 || len(acts) < 4 {
		t.Errorf("%d checkpoints, %v: nothing was tried", commits, acts)
	}
}

// FuzzDrawnPrimary is the same for what a fuzzer draws.
func FuzzDrawnPrimary(f *testing.F) {
	r := record(f)
	base := whole(f, r)
	f.Add([]byte{})
	f.Add([]byte("\x04\x03\x00\x09\x00\x00\x04\x00\x03\x01\x05\x02\x06\x03\x07\x00\x00\x09"))
	f.Add(bytes.Repeat([]byte{1, 0, 2}, 40))
	f.Fuzz(func(t *testing.T, drawn []byte) { takesOnlyWhatIsWhole(t, r, base, drawn[:min(len(drawn), 1<<10)]) })
}
