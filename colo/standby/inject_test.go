package standby_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A secondary's answers are bare words: checkpoint-ready, then three for each
// checkpoint. The faults are in the second one.
const (
	inReady    = 0
	inReply    = 4
	inReceived = 5
	inLoaded   = 6
)

// tamper is a secondary's connection with a fault in one of its answers.
type tamper struct {
	net.Conn
	at   int    // in which
	say  []byte // what is said instead
	then ending
	hit  chan struct{} // closed when it has been said

	seen int
	mute bool
}

// ending says how a connection goes on after the fault.
type ending int

const (
	goOn  ending = iota // the other answers, as they should be
	hold                // nothing, and the connection stays
	hangs               // nothing: it is closed
)

func (c *tamper) Write(p []byte) (int, error) {
	for at := 0; at < len(p) && !c.mute; at += 4 {
		if c.seen++; c.seen-1 != c.at {
			if _, err := c.Conn.Write(p[at : at+4]); err != nil {
				return at, err
			}
			continue
		}
		if len(c.say) > 0 {
			if _, err := c.Conn.Write(c.say); err != nil {
				return at, err
			}
		}
		c.mute = c.then != goOn
		if c.then == hangs {
			c.Conn.Close()
		}
		close(c.hit)
	}
	return len(p), nil
}

// What a QEMU 7.2.22 primary does with a fault.
type reaction struct {
	exit  bool   // COLO_EXIT comes by itself; otherwise only after x-colo-lost-heartbeat
	state string // of its guest, until x-colo-lost-heartbeat: only "running" runs
}

var (
	exitsAtStart = reaction{true, "finish-migrate"} // the guest stands
	waitsAtStart = reaction{false, "finish-migrate"}
	exitsRunning = reaction{true, "running"}
	exitsStopped = reaction{true, "colo"} // in the middle of a checkpoint: the guest stands
	waitsRunning = reaction{false, "running"}
	waitsStopped = reaction{false, "colo"}
	doesNotMind  = reaction{false, ""} // prints an error, and checkpoints as before
)

// What a primary of package colo does with the same fault: its session ends, and it goes on
// alone.
func wrongMessage(err error) bool { var m *colo.MessageError; return errors.As(err, &m) }
func silence(err error) bool      { return errors.Is(err, colo.ErrTimeout) }
func theEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe)
}

type answerFault struct {
	name string
	at   int
	say  []byte
	then ending
	qemu reaction
	ours func(error) bool

	epoch uint64 // what is kept here, of a QEMU primary
}

func answerFaults() (list []answerFault) {
	garbage := bytes.Repeat([]byte{0xa5}, 64)
	for _, a := range []struct {
		name  string
		at    int
		right uint32
		wrong uint32 // another answer
		epoch uint64
		qemu  [7]reaction
	}{
		{"checkpoint-ready", inReady, 0, 2, 0, [7]reaction{exitsAtStart, exitsAtStart, exitsRunning, exitsAtStart, waitsAtStart, exitsAtStart, exitsAtStart}},
		{"checkpoint-reply", inReply, 2, 6, 1, [7]reaction{exitsRunning, exitsRunning, exitsStopped, exitsRunning, waitsRunning, exitsRunning, exitsRunning}},
		{"vmstate-received", inReceived, 5, 6, 2, [7]reaction{exitsStopped, exitsStopped, exitsStopped, exitsStopped, waitsStopped, exitsStopped, exitsStopped}},
		{"vmstate-loaded", inLoaded, 6, 5, 2, [7]reaction{doesNotMind, doesNotMind, exitsRunning, exitsStopped, waitsStopped, exitsStopped, exitsStopped}},
	} {
		for i, f := range []answerFault{
			{name: "with an unknown value", say: be(99), ours: wrongMessage},
			{name: "is another answer", say: be(a.wrong), ours: wrongMessage},
			{name: "comes twice", say: be(a.right, a.right), ours: wrongMessage},
			{name: "is garbage", say: garbage, ours: wrongMessage},
			{name: "is cut short, and silence", say: be(a.right)[:2], then: hold, ours: silence},
			{name: "is cut short, and the end", say: be(a.right)[:2], then: hangs, ours: theEnd},
			{name: "does not come, but the end", then: hangs, ours: theEnd},
		} {
			f.name, f.at, f.qemu, f.epoch = a.name+" "+f.name, a.at, a.qemu[i], a.epoch
			if a.at == inReply && bytes.Equal(f.say, be(2, 2)) {
				f.epoch = 2 // the checkpoint is sent all the same
			}
			list = append(list, f)
		}
	}
	return list
}

// Whatever a secondary answers, QEMU's guest can be let go on; but QEMU may wait
// for ever, and its guest stand, until somebody does.
func TestWhatAQEMUPrimaryDoesWithAWrongAnswer(t *testing.T) {
	qemutest.KVM(t)
	for i, f := range answerFaults() {
		t.Run(f.name, func(t *testing.T) {
			require.Sample(t, i, 8)
			l, p := primary(t, "microvm", 2, 1, 10*time.Millisecond)
			hit := make(chan struct{})
			var o options
			o.cfg.PeerTimeout = -1 // QEMU closes nothing before it is told
			o.wrap = func(c net.Conn) net.Conn {
				return &tamper{Conn: c, at: f.at, say: f.say, then: f.then, hit: hit}
			}
			x := accept(t, l, o)
			<-hit
			if f.qemu == doesNotMind {
				x.await(5)
			} else {
				if f.qemu.exit {
					p.Await("COLO_EXIT")
				}
				p.AwaitRunState(f.qemu.state)
			}
			if f.qemu.state == "running" {
				qemutest.AwaitSerial(t, p.Dir, len(qemutest.Serial(p.Dir))+3)
			}
			if !f.qemu.exit && p.Saw("COLO_EXIT") {
				t.Error("QEMU has noticed")
			}
			if f.qemu == waitsAtStart {
				// QEMU says that it is in COLO a moment before the order can be carried out,
				// and would end by an assertion of its own in between ("qemu_event_set").
				for time.Sleep(500 * time.Millisecond); wantsCPU(p.Process().Pid); time.Sleep(10 * time.Millisecond) {
				}
			}
			p.Must("x-colo-lost-heartbeat", nil)
			if !f.qemu.exit {
				p.Await("COLO_EXIT")
			}
			p.AwaitRunState("running")
			qemutest.AwaitSerial(t, p.Dir, len(qemutest.Serial(p.Dir))+3)
			x.wait()
			// What was kept here is whole in any case.
			in, err := x.guest.Info()
			if err != nil || in.Epoch != f.epoch && (f.qemu != doesNotMind || in.Epoch < 5) {
				t.Errorf("epoch %d, not %d: %v", in.Epoch, f.epoch, err)
			}
			put(t, x.guest)
		})
	}
}

// wantsCPU reports whether a thread of a process runs, or waits for others to leave it a CPU. It
// knows that of Linux only.
func wantsCPU(pid int) bool {
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range list {
		stat, _ := os.ReadFile(name)
		if _, after, _ := bytes.Cut(stat, []byte(") ")); bytes.HasPrefix(after, []byte("R")) {
			return true
		}
	}
	return false
}

// A primary of package colo that gets the same answers ends its session, at once or in
// bounded time, and says why. Its guest runs on.
func TestOurPrimaryGoesOnAfterAWrongAnswer(t *testing.T) {
	for i, f := range answerFaults() {
		if testing.Short() && i%4 != 0 {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				guest, err1 := colotest.NewVM(colotest.VMConfig{Touch: 4})
				twin, err2 := colotest.NewVM(colotest.VMConfig{Touch: 4})
				var here, there vmstate.Registry
				_, err3 := guest.RegisterPrimary(&here, ram.SaverConfig{})
				cache, err4 := twin.RegisterSecondary(&there, ram.CacheConfig{})
				a, b := net.Pipe()
				var cause error
				p, err5 := colo.NewPrimary(a, colo.PrimaryConfig{
					VM: guest, State: &here, CheckpointDelay: time.Millisecond, PeerTimeout: 200 * time.Millisecond,
					Arbiter: colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error { cause = c.Cause; return nil }),
				})
				s, err6 := colo.NewSecondary(&tamper{Conn: b, at: f.at, say: f.say, then: f.then, hit: make(chan struct{})}, colo.SecondaryConfig{
					VM: twin, State: &there, RAM: cache, PeerTimeout: -1, IdleTimeout: -1,
					Arbiter: colo.ArbiterFunc(func(context.Context, colo.Claim) error { return fmt.Errorf("%w: the primary lives", colo.ErrRefused) }),
				})
				if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { guest.Run(ctx) })
				running.Go(func() { twin.Run(ctx) })
				running.Go(func() { s.Run(ctx) })
				if err := p.Run(ctx); err != nil || guest.Paused() {
					t.Errorf("it does not go on: %v", err)
				}
				if cause == nil || !f.ours(cause) {
					t.Errorf("the cause is %v", cause)
				}
				stop()
				running.Wait()
				if err := errors.Join(cache.Close(), guest.Close(), twin.Close()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// requestFault is a second checkpoint with something wrong in it.
type requestFault struct {
	name string
	sent []byte // after the initial migration and one checkpoint; the whole of it if initial
	all  bool
	then ending // hold or hangs

	died  bool   // the QEMU process
	exit  bool   // COLO_EXIT
	state string // run state
	ours  func(error) bool
	epoch uint64 // what we have
}

func requestFaults(t *testing.T) []requestFault {
	initial, good := vector(t, "none-initial.bin"), checkpoint(t, page(0x3000|0x28, filled(9)...))
	size := bytes.Index(good, be(4, 0)) // vmstate-size and the high half of the length
	devices := size + 12
	replace := func(at int, with ...byte) []byte {
		return slices.Concat(good[:at], with, good[at+len(with):])
	}
	length := func(n uint64) []byte { return replace(size+4, be64(n)...) }
	n := binary.BigEndian.Uint64(good[size+4:])
	desc := bytes.Index(initial, []byte("\x06\x00\x00\x01\xe6{"))
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	const running, colo_ = "running", "colo"
	return []requestFault{
		{name: "an unknown request", sent: replace(0, be(99)...), exit: true, state: running, ours: wrongMessage},
		{name: "vmstate-send for the request", sent: replace(0, be(3)...), exit: true, state: running, ours: wrongMessage},
		{name: "an unknown value for vmstate-send", sent: replace(4, be(99)...), exit: true, state: colo_, ours: wrongMessage},
		{name: "a request for vmstate-send", sent: replace(4, be(1)...), exit: true, state: colo_, ours: wrongMessage},
		{name: "an unknown value for vmstate-size", sent: replace(size, be(99)...), exit: true, state: colo_, ours: wrongMessage},
		{name: "vmstate-loaded for vmstate-size", sent: replace(size, be(6)...), exit: true, state: colo_, ours: wrongMessage},
		// QEMU takes memory on the peer's word, or waits for it.
		{name: "2^40 bytes of devices", sent: length(1 << 40), died: true, ours: is(colo.ErrSize)},
		{name: "2^62 bytes of devices", sent: length(1 << 62), died: true, ours: is(colo.ErrSize)},
		{name: "2^64-1 bytes of devices", sent: length(1<<64 - 1), died: true, ours: is(colo.ErrSize)},
		{name: "one byte more than comes", sent: length(n + 1), state: colo_, ours: silence},
		// QEMU says so after it has changed the guest's memory.
		{name: "no devices", sent: length(0), exit: true, state: colo_, ours: func(err error) bool { return err != nil }},
		{name: "fewer devices", sent: length(n - 10), exit: true, state: colo_, ours: func(err error) bool { return err != nil }},
		{name: "the end after vmstate-send", sent: good[:8], then: hangs, exit: true, state: colo_, ours: theEnd},
		{name: "the end in memory", sent: good[:2000], then: hangs, exit: true, state: colo_, ours: theEnd},
		{name: "the end in the devices", sent: good[:devices+50], then: hangs, exit: true, state: colo_, ours: theEnd},
		{name: "the end between checkpoints", then: hangs, exit: true, state: running, ours: theEnd},
		{name: "the end in the initial memory", sent: initial[:200], all: true, then: hangs, died: true, ours: theEnd},
		{name: "the end in the initial devices", sent: initial[:desc-60], all: true, then: hangs, died: true, ours: theEnd},
		{name: "the end in the description", sent: initial[:desc+40], all: true, then: hangs, exit: true, state: running, ours: theEnd},
	}
}

// What a QEMU 7.2.22 secondary does with a wrong request, and what a standby does with the
// same bytes: it ends in bounded time, with the last whole checkpoint.
func TestWhatAQEMUSecondaryAndWeDoWithAWrongRequest(t *testing.T) {
	for i, f := range requestFaults(t) {
		sent := f.sent
		if !f.all {
			sent = slices.Concat(vector(t, "none-initial.bin"), checkpoint(t, named(0x3000|0x08, "ram", filled(7)...)), f.sent)
			f.epoch = 1
		}
		t.Run(f.name+" to a QEMU", func(t *testing.T) {
			require.Sample(t, i, 5)
			toQEMU(t, f, sent)
		})
		t.Run(f.name+" to us", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { toUs(t, f, sent) })
		})
	}
}

func toQEMU(t *testing.T, f requestFault, sent []byte) {
	s, uri := secondary(t, "none", 1)
	conn := say(t, uri, sent, f.then)
	defer conn.Close()
	if f.died {
		s.AwaitEnd()
		return
	}
	if f.exit {
		s.Await("COLO_EXIT")
	}
	s.AwaitRunState(f.state)
	if !f.exit && s.Saw("COLO_EXIT") {
		t.Error("QEMU has noticed")
	}
	s.Must("x-colo-lost-heartbeat", nil)
	s.AwaitRunState("running")
}

func toUs(t *testing.T, f requestFault, sent []byte) {
	ours, theirs := net.Pipe()
	var peer sync.WaitGroup
	peer.Go(func() { theirs.Write(sent) }) // it fails where we hear no more
	peer.Go(func() { io.Copy(io.Discard, theirs) })
	t.Cleanup(func() { theirs.Close(); peer.Wait() })
	var cause error
	var o options
	o.cfg.PeerTimeout = 2 * time.Second
	o.cfg.Arbiter = colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error { cause = c.Cause; return nil })
	x := follow(t, &scripted{Conn: ours, left: len(sent), ends: f.then == hangs}, o)
	err := x.wait()
	if cause == nil {
		cause = err
	}
	if cause == nil || !f.ours(cause) {
		t.Errorf("it ended with %v", cause)
	}
	in, err := x.guest.Info()
	if f.all {
		if err == nil {
			t.Errorf("there is a guest: %+v", in)
		}
		return
	}
	var p [1]byte
	if e := x.guest.ReadRAM("ram", 0x3000, p[:]); e != nil || err != nil || in.Epoch != f.epoch || p[0] != 7 {
		t.Errorf("epoch %d, %#x: %v, %v", in.Epoch, p, err, e)
	}
}

// scripted is one end of a connection whose other end sends no more than left bytes. If that
// ends then, it still takes what is sent to it, as when only its own half is closed.
type scripted struct {
	net.Conn
	left int
	ends bool
}

func (c *scripted) Read(p []byte) (int, error) {
	if c.ends && c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	c.left -= n
	return n, err
}

// say plays a primary that does not listen.
func say(t *testing.T, uri string, sent []byte, then ending) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if conn, err = net.Dial("tcp", uri[len("tcp:"):]); err == nil || time.Now().After(end) {
			break
		}
	}
	if err == nil {
		_, err = conn.Write(sent)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("a scripted primary: %w", err))
	}
	if then == hangs {
		// Its half only: what comes back is taken, so that nothing is reset.
		conn.(*net.TCPConn).CloseWrite()
	}
	var done sync.WaitGroup
	done.Go(func() { io.Copy(io.Discard, conn) })
	t.Cleanup(func() { conn.Close(); done.Wait() })
	return conn
}
