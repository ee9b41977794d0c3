package colo_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// recording holds the messages of a primary in a session with two checkpoints, taken
// apart: a test changes one and plays the primary that gets it wrong.
type recording struct {
	initial []byte // up to the VM description
	first   []byte // the first checkpoint, whole
	ram     []byte // of the second: live sections and their EOF
	devices []byte // of the second: device state and its EOF
	ramID   uint32
}

// record makes a recording. The guest's history in it is the same each time.
func record(t testing.TB) recording {
	t.Helper()
	var sizes []uint64
	x := newPair(t, options{record: true, primary: func(c *colo.PrimaryConfig) {
		c.EarlyShare = 0.5 // and there is no time for it
		c.Trace = func(_ string, m colo.Message, v uint64) {
			if m == colo.VMStateSize {
				sizes = append(sizes, v)
			}
		}
	}})
	defer x.close()
	event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		x.p.step(2)
		if c.Epoch == 2 {
			x.pc.Break()
		}
	})
	x.start(t.Context())
	x.wait()

	var r recording
	cut := func(b []byte, sep ...uint32) (before, after []byte) {
		t.Helper()
		var s []byte
		for _, v := range sep {
			s = binary.BigEndian.AppendUint32(s, v)
		}
		before, after, ok := bytes.Cut(b, s)
		if !ok {
			t.Fatalf("no % x in what a primary sends", s)
		}
		return before, after
	}
	request, send := uint32(colo.CheckpointRequest), uint32(colo.VMStateSend)
	rest := x.tee.sent
	r.initial, rest = cut(rest, request, send)
	first, rest := cut(rest, request, send)
	r.first = slices.Concat(be32(request, send), first)
	r.ram, rest = cut(rest, uint32(colo.VMStateSize), 0, uint32(sizes[1]))
	r.devices = rest[:sizes[1]]
	r.ramID = binary.BigEndian.Uint32(r.ram[1:])
	return r
}

func be32(v ...uint32) (b []byte) {
	for _, v := range v {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func be64(v ...uint64) (b []byte) {
	for _, v := range v {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// second returns the second checkpoint with other contents.
func (r recording) second(live, devices []byte) []byte {
	return slices.Concat(be32(1, 3), live, be32(4), be64(uint64(len(devices))), devices)
}

// section returns a live section of memory around records.
func (r recording) section(records ...[]byte) []byte {
	return slices.Concat([]byte{3}, be32(r.ramID), slices.Concat(records...), be64(0x10), []byte{0x7e}, be32(r.ramID), []byte{0})
}

// part returns a section of memory around records that more follow.
func (r recording) part(records ...[]byte) []byte {
	return slices.Concat([]byte{2}, be32(r.ramID), slices.Concat(records...), be64(0x10), []byte{0x7e}, be32(r.ramID))
}

// early returns what a primary sends between two checkpoints.
func early(parts ...[]byte) []byte {
	return slices.Concat(be32(uint32(colo.EarlyPages)), slices.Concat(parts...), []byte{0})
}

func page(word uint64, block string) []byte {
	b := be64(word)
	if block != "" {
		b = append(append(b, byte(len(block))), block...)
	}
	return append(b, bytes.Repeat([]byte{0x5a}, ram.PageSize)...)
}

// full returns a device section.
func full(id uint32, name string, instance, version uint32, body []byte, footer ...byte) []byte {
	b := slices.Concat([]byte{4}, be32(id), []byte{byte(len(name))}, []byte(name), be32(instance, version), body)
	if footer == nil {
		footer = slices.Concat([]byte{0x7e}, be32(id))
	}
	return append(b, footer...)
}

// is and as say which error is wanted.
func is(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func as[T error](ok func(T) bool) func(error) bool {
	return func(err error) bool {
		var e T
		return errors.As(err, &e) && (ok == nil || ok(e))
	}
}

func message(got, want colo.Message) func(error) bool {
	return as(func(e *colo.MessageError) bool { return e.Got == got && e.Want == want && e.Offset > 0 })
}

func both(fs ...func(error) bool) func(error) bool {
	return func(err error) bool {
		for _, f := range fs {
			if !f(err) {
				return false
			}
		}
		return true
	}
}

var (
	inSection = as[*vmstate.SectionError](nil)
	inRAM     = both(inSection, as(func(e *ram.Error) bool { return e.Stream > 0 }))
	regs      = func(n, x, k, acc, frame uint64) []byte { return be64(n, x, k, acc, frame) }
)

// badCheckpoints are second checkpoints that a secondary must not take.
var badCheckpoints = []struct {
	name string
	bad  func(r recording) []byte
	op   string // where it is noticed
	want func(error) bool
}{
	{"a reply for a request", func(r recording) []byte { return be32(2) }, "wait", message(colo.CheckpointReply, colo.CheckpointRequest)},
	{"a message that does not exist", func(r recording) []byte { return be32(7) }, "wait", message(7, colo.CheckpointRequest)},
	{"a message of all ones", func(r recording) []byte { return be32(1<<32 - 1) }, "wait", message(1<<32-1, colo.CheckpointRequest)},
	{"two requests", func(r recording) []byte { return be32(1, 1) }, "expect vmstate-send", message(colo.CheckpointRequest, colo.VMStateSend)},
	{"device state before memory", func(r recording) []byte { return be32(1, 4) }, "expect vmstate-send", message(colo.VMStateSize, colo.VMStateSend)},
	{"memory twice", func(r recording) []byte {
		return slices.Concat(be32(1, 3), r.ram, be32(3), r.ram)
	}, "stage device state", message(colo.VMStateSend, colo.VMStateSize)},
	{"2^62 bytes of device state", func(r recording) []byte {
		return slices.Concat(be32(1, 3), r.ram, be32(4), be64(1<<62))
	}, "stage device state", is(colo.ErrSize)},
	{"one byte of device state too much", func(r recording) []byte {
		return slices.Concat(be32(1, 3), r.ram, be32(4), be64(256<<20+1))
	}, "stage device state", is(colo.ErrSize)},
	{"less device state than announced", func(r recording) []byte {
		return slices.Concat(be32(1, 3), r.ram, be32(4), be64(1<<20), r.devices)
	}, "stage device state", is(io.ErrUnexpectedEOF)},
	{"no device state", func(r recording) []byte { return r.second(r.ram, nil) },
		"stage device state", both(inSection, is(io.ErrUnexpectedEOF))},
	{"device state without its end", func(r recording) []byte { return r.second(r.ram, r.devices[:len(r.devices)-1]) },
		"stage device state", both(inSection, is(io.ErrUnexpectedEOF))},
	{"bytes after the device state", func(r recording) []byte { return r.second(r.ram, append(slices.Clone(r.devices), 0)) },
		"stage device state", both(inSection, is(vmstate.ErrTrailing))},
	{"a file header in the device state", func(r recording) []byte {
		return r.second(r.ram, append(slices.Concat([]byte("QEVM"), be32(3)), r.devices...))
	}, "stage device state", both(inSection, is(vmstate.ErrSectionType))},
	{"an unknown device", func(r recording) []byte { return r.second(r.ram, append(full(9, "toaster", 0, 1, nil), 0)) },
		"stage device state", both(inSection, is(vmstate.ErrUnknownSection))},
	{"an unknown instance", func(r recording) []byte {
		return r.second(r.ram, append(full(9, "vcpu", 8, 1, regs(1, 2, 3, 4, 0)), 0))
	}, "stage device state", both(inSection, is(vmstate.ErrUnknownSection))},
	{"a version from the future", func(r recording) []byte {
		return r.second(r.ram, append(full(2, "vcpu", 0, 2, regs(1, 2, 3, 4, 0)), 0))
	}, "stage device state", both(inSection, is(vmstate.ErrVersion))},
	{"a device without a footer", func(r recording) []byte {
		return r.second(r.ram, append(full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 0), 0), 0))
	}, "stage device state", both(inSection, is(vmstate.ErrFooter))},
	{"a footer of another device", func(r recording) []byte {
		return r.second(r.ram, append(full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 0), 0x7e, 0, 0, 0, 9), 0))
	}, "stage device state", both(inSection, is(vmstate.ErrFooter))},
	{"a value that the device cannot take", func(r recording) []byte {
		return r.second(r.ram, append(full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 1<<40)), 0))
	}, "stage device state", both(inSection, is(vmstate.ErrValue))},
	{"a device that is cut short", func(r recording) []byte {
		return r.second(r.ram, full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 0)[:20], []byte{}...))
	}, "stage device state", both(inSection, is(io.ErrUnexpectedEOF))},
	{"a bad device after a good one", func(r recording) []byte {
		return r.second(r.ram, slices.Concat(full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 0)), full(9, "toaster", 0, 1, nil), []byte{0}))
	}, "stage device state", both(inSection, is(vmstate.ErrUnknownSection))},
	{"a page of an unknown block", func(r recording) []byte { return r.second(r.section(page(0x08, "elsewhere")), r.devices) },
		"stage ram", both(inRAM, is(ram.ErrUnknownBlock))},
	{"a page beyond its block", func(r recording) []byte {
		return r.second(r.section(page(1<<40|0x08, colotest.Block)), r.devices)
	}, "stage ram", both(inRAM, is(ram.ErrOffset))},
	{"a good page, then one beyond its block", func(r recording) []byte {
		return r.second(r.section(page(0x9000|0x08, colotest.Block), page(1<<40|0x28, "")), r.devices)
	}, "stage ram", both(inRAM, is(ram.ErrOffset))},
	{"unknown flags", func(r recording) []byte { return r.second(r.section(page(0x800, "")), r.devices) },
		"stage ram", both(inRAM, is(ram.ErrFlags))},
	{"an unknown live section", func(r recording) []byte {
		return r.second(slices.Concat([]byte{3}, be32(77), be64(0x10), []byte{0x7e}, be32(77), []byte{0}), r.devices)
	}, "stage ram", both(inSection, is(vmstate.ErrUnknownSection))},
	{"memory without a footer", func(r recording) []byte {
		return r.second(slices.Concat([]byte{3}, be32(r.ramID), be64(0x10), []byte{0}), r.devices)
	}, "stage ram", both(inSection, is(vmstate.ErrFooter))},
	{"memory with the footer of another section", func(r recording) []byte {
		return r.second(slices.Concat([]byte{3}, be32(r.ramID), be64(0x10), []byte{0x7e}, be32(r.ramID+1), []byte{0}), r.devices)
	}, "stage ram", both(inSection, is(vmstate.ErrFooter))},
	{"memory without its end", func(r recording) []byte { return r.second(r.ram[:len(r.ram)-1], r.devices) },
		"stage device state", as[*colo.MessageError](nil)},
	{"a command that has no place here", func(r recording) []byte {
		return r.second(slices.Concat([]byte{8}, []byte{0, 2, 0, 3, 1, 2, 3}, r.ram), r.devices)
	}, "stage ram", both(inSection, is(vmstate.ErrCommand))},
	{"a device between checkpoints", func(r recording) []byte {
		return slices.Concat(early(r.part()), be32(uint32(colo.EarlyPages)), full(2, "vcpu", 0, 1, regs(1, 2, 3, 4, 0)), []byte{0}, r.second(r.ram, r.devices))
	}, "stage ram early", both(inSection, is(vmstate.ErrSectionType))},
	{"the end of memory between checkpoints", func(r recording) []byte {
		return slices.Concat(be32(uint32(colo.EarlyPages)), r.section(), r.second(r.ram, r.devices))
	}, "stage ram early", both(inSection, is(vmstate.ErrSectionType))},
	{"a command between checkpoints", func(r recording) []byte {
		return slices.Concat(be32(uint32(colo.EarlyPages)), []byte{8}, []byte{0, 2, 0, 3, 1, 2, 3}, r.second(r.ram, r.devices))
	}, "stage ram early", both(inSection, is(vmstate.ErrSectionType))},
	{"a page beyond its block, early", func(r recording) []byte {
		return slices.Concat(early(r.part(page(0x9000|0x08, colotest.Block), page(1<<40|0x28, ""))), r.second(r.ram, r.devices))
	}, "stage ram early", both(inRAM, is(ram.ErrOffset))},
	{"early pages that do not end", func(r recording) []byte {
		return slices.Concat(be32(uint32(colo.EarlyPages)), r.part(page(0x9000|0x08, colotest.Block)))
	}, "stage ram early", both(inSection, is(io.ErrUnexpectedEOF))},
	{"early pages, and then nothing", func(r recording) []byte {
		return early(r.part(page(0x9000|0x08, colotest.Block)))
	}, "wait", is(io.EOF)},
	{"early pages before the reply was waited for", func(r recording) []byte {
		return slices.Concat(be32(1), early(r.part()))
	}, "expect vmstate-send", message(colo.EarlyPages, colo.VMStateSend)},
	{"early pages, and a device state that is none", func(r recording) []byte {
		return slices.Concat(early(r.part(page(0x9000|0x08, colotest.Block))), r.second(r.ram, nil))
	}, "stage device state", both(inSection, is(io.ErrUnexpectedEOF))},
	{"how much is taken early, from a primary", func(r recording) []byte {
		return slices.Concat(be32(uint32(colo.TakeEarly)), be64(1))
	}, "wait", message(colo.TakeEarly, colo.CheckpointRequest)},
	{"no checkpoint", func(r recording) []byte { return nil }, "wait", is(io.EOF)},
	{"half a message", func(r recording) []byte { return []byte{0, 0} }, "wait", is(io.ErrUnexpectedEOF)},
}

// victim is a secondary alone with what it is sent.
type victim struct {
	*host
	cause  error  // what its arbiter was told
	memory []byte // and what its guest was then
	rounds []uint64
}

// committed returns the last checkpoint that was committed.
func (v *victim) committed() (epoch uint64) {
	for _, c := range v.net.Calls() {
		if c.Name == "commit" {
			epoch = c.Epoch
		}
	}
	return epoch
}

// feed runs a secondary on a stream that ends, and then has it take over.
func feed(t testing.TB, stream []byte, o options) (*victim, error) {
	t.Helper()
	w := &world{cfg: small}
	v := &victim{host: newHost(t, w, "secondary")}
	cfg := v.secondary()
	cfg.Arbiter = colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
		v.cause = c.Cause
		if !v.guest.Paused() {
			t.Error("the arbiter was asked while the guest ran")
		}
		v.memory, v.rounds = bytes.Clone(v.guest.Memory()), v.guest.Rounds()
		return nil
	})
	if o.secondary != nil {
		o.secondary(&cfg)
	}
	// What the secondary answers vanishes; the stream is there before it is
	// read, and ends.
	s, err := colo.NewSecondary(&canned{Reader: bytes.NewReader(stream)}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v, s.Run(t.Context())
}

// canned is a connection whose other end has said everything.
type canned struct{ *bytes.Reader }

func (*canned) Write(b []byte) (int, error) { return len(b), nil }
func (*canned) Close() error                { return nil }

func TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	good, err := feed(t, slices.Concat(r.initial, r.first), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer good.close()
	// Both good checkpoints are taken, or the rest proves nothing.
	two, err := feed(t, slices.Concat(r.initial, r.first, r.second(r.ram, r.devices)), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer two.close()
	if bytes.Equal(two.memory, good.memory) || slices.Equal(two.rounds, good.rounds) {
		t.Fatal("the second checkpoint changes nothing")
	}
	for _, c := range badCheckpoints {
		t.Run(c.name, func(t *testing.T) {
			v, err := feed(t, slices.Concat(r.initial, r.first, c.bad(r)), options{})
			defer v.close()
			if err != nil {
				t.Fatalf("takeover: %v", err)
			}
			var e *colo.Error
			if !errors.As(v.cause, &e) || e.Op != c.op || e.Mode != event.ModeSecondary || e.Epoch != 2 && e.Op != "wait" && e.Op != "stage ram early" {
				t.Errorf("the session ended with %q, want it to name %q of checkpoint 2", v.cause, c.op)
			}
			if !c.want(v.cause) {
				t.Errorf("the session ended with %q (%T), which is not the error wanted", v.cause, errors.Unwrap(v.cause))
			}
			if !bytes.Equal(v.memory, good.memory) {
				t.Error("the guest's memory is not that of the last checkpoint")
			}
			if !slices.Equal(v.rounds, good.rounds) {
				t.Errorf("the guest's registers are of rounds %v, those of the last checkpoint are of %v", v.rounds, good.rounds)
			}
			if v.plain.v != good.plain.v {
				t.Errorf("a device has %d, and had %d at the last checkpoint", v.plain.v, good.plain.v)
			}
			if err := v.cache.Flush(); !errors.Is(err, ram.ErrDiscarded) {
				t.Errorf("what was staged could still become the guest's: %v", err)
			}
			if v.guest.Paused() {
				t.Error("the guest does not run after the takeover")
			}
			v.step(1) // and can
		})
	}
}

func TestCheckpointThatEndsAnywhereIsRefusedWhole(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	good, err := feed(t, slices.Concat(r.initial, r.first), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer good.close()
	second := r.second(r.ram, r.devices)
	inside := pages(second, 1<<30)
	for i := range second {
		if !*every && (inside[i] && i%997 != 0 || i%(5*sparse()) != 0) {
			continue
		}
		v, err := feed(t, slices.Concat(r.initial, r.first, second[:i]), options{})
		if err != nil {
			t.Fatalf("cut at byte %d: takeover: %v", i, err)
		}
		if !errors.Is(v.cause, io.EOF) && !errors.Is(v.cause, io.ErrUnexpectedEOF) || !as[*colo.Error](nil)(v.cause) {
			t.Errorf("cut at byte %d: %v", i, v.cause)
		}
		if !bytes.Equal(v.memory, good.memory) || !slices.Equal(v.rounds, good.rounds) {
			t.Fatalf("cut at byte %d: the guest is not that of the last checkpoint", i)
		}
		v.close()
	}
}

func TestBadInitialStreamLeavesTheSecondaryWithoutAGuest(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	head, list, ok := bytes.Cut(r.initial, append([]byte("\x03ram"), be32(0, 4)...))
	if !ok {
		t.Fatal("no ram section")
	}
	start := len(r.initial) - len(list) + bytes.Index(list, append([]byte{0x7e}, be32(r.ramID)...)) + 5
	fresh := newHost(t, &world{cfg: small}, "secondary")
	defer fresh.close()
	for _, c := range []struct {
		name   string
		stream []byte
		op     string
		want   func(error) bool
	}{
		{"nothing", nil, "receive header", is(io.EOF)},
		{"no migration stream", []byte("GET / HTTP/1.1\r\n\r\n"), "receive header", is(vmstate.ErrMagic)},
		{"another stream version", slices.Concat([]byte("QEVM"), be32(4), r.initial[8:]), "receive header", is(vmstate.ErrVersion)},
		{"another machine", bytes.Replace(r.initial, []byte("\x00\x00\x00\x03sim"), []byte("\x00\x00\x00\x03sum"), 1), "receive header", is(vmstate.ErrConfiguration)},
		{"CONTINUE before any block", slices.Concat(r.initial[:start], []byte{2}, be32(r.ramID), page(0x28, "")), "receive state", both(inRAM, is(ram.ErrNoBlock))},
		{"a block of another size", bytes.Replace(r.initial, append([]byte("\x09"+colotest.Block), be64(uint64(len(fresh.guest.Memory())))...), append([]byte("\x09"+colotest.Block), be64(1<<40)...), 1), "receive state", both(inSection, is(ram.ErrBlockList))},
		{"a section of nobody's", slices.Concat(head[:len(head)-5], []byte{1}, be32(5), []byte("\x03rom"), be32(0, 4)), "receive state", both(inSection, is(vmstate.ErrUnknownSection))},
		{"it ends in the middle", r.initial[:len(r.initial)/2], "receive state", is(io.ErrUnexpectedEOF)},
		{"it ends before the description", r.initial[:bytes.LastIndex(r.initial, []byte("\x00\x06"))], "receive state", is(io.ErrUnexpectedEOF)},
		{"the description is 4 GiB long", slices.Concat(r.initial[:bytes.LastIndex(r.initial, []byte("\x00\x06"))+2], be32(1<<32-1)), "receive state", is(qemufile.ErrTooLong)},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := feed(t, c.stream, options{})
			defer v.close()
			var e *colo.Error
			if !errors.As(err, &e) || e.Op != c.op || e.Epoch != 0 {
				t.Errorf("the session ended with %q, want it to name %q", err, c.op)
			}
			if !c.want(err) {
				t.Errorf("the session ended with %q, which is not the error wanted", err)
			}
			if v.cause != nil {
				t.Error("the arbiter was asked for a guest that there is not")
			}
			if !v.guest.Paused() {
				t.Error("a guest runs that was never loaded")
			}
			if !bytes.Equal(v.guest.Memory(), fresh.guest.Memory()) || !slices.Equal(v.guest.Rounds(), fresh.guest.Rounds()) {
				t.Error("the guest was touched")
			}
			if len(v.exits()) != 0 {
				t.Errorf("%v of a session that never was", v.exits())
			}
		})
	}
}

// TestPrimaryRefusesAnyOtherAnswer has a secondary answer one message with each
// other one.
func TestPrimaryRefusesAnyOtherAnswer(t *testing.T) {
	answers := []colo.Message{colo.CheckpointReady, colo.CheckpointReply, colo.VMStateReceived, colo.VMStateLoaded}
	synctest.Test(t, func(t *testing.T) {
		for i, want := range answers {
			for got := colo.Message(0); got < 8; got++ {
				if got == want || testing.Short() && (i+int(got))%4 != 0 {
					continue
				}
				x := newPair(t, options{qemu: true, sp: colotest.Flow{Corrupt: map[int64]byte{int64(i*4 + 3): byte(got ^ want)}}})
				var cause error
				x.witness.Deny = func(c colo.Claim) error {
					if c.Mode == event.ModeSecondary {
						return errors.New("dead")
					}
					cause = c.Cause
					return nil
				}
				x.start(t.Context())
				x.wait()
				if !message(got, want)(cause) && i > 0 || !as[*colo.MessageError](nil)(cause) {
					t.Errorf("%v for %v: the primary ended with %v", got, want, cause)
				}
				if h := x.wantWhole(t); h != x.p {
					t.Errorf("%v for %v: the secondary took over", got, want)
				}
				x.close()
			}
		}
	})
}
