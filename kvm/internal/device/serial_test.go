package device

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// com is a serial port whose console takes what it is given when it is let.
type com struct {
	*board
	*Serial
	con *Console
}

func newCom(t testing.TB) *com {
	b := newBoard(t)
	con := NewConsole(new(bytes.Buffer), nil)
	return &com{b, NewSerial(con, b.line), con}
}

func (c *com) in(off uint16) byte {
	p := []byte{0x55}
	c.In(off, p)
	return p[0]
}

func (c *com) out(off uint16, v byte) { c.Out(off, []byte{v}) }

// The steps of Linux's 8250 driver that tell what is there.
func TestADriverFindsA16550A(t *testing.T) {
	c := newCom(t)
	c.out(uartIER, 0)
	if v := c.in(uartIER) & 0xf; v != 0 {
		t.Errorf("IER is %#x after 0", v)
	}
	c.out(uartIER, 0xf)
	if v := c.in(uartIER) & 0xf; v != 0xf {
		t.Errorf("IER is %#x after 0xf", v)
	}
	c.out(uartIER, 0)
	c.out(uartMCR, mcrLoop|0x0a)
	if v := c.in(uartMSR) & 0xf0; v != 0x90 {
		t.Errorf("MSR is %#x in a loop of RTS and OUT2", v)
	}
	for reg, bits := range map[uint16]byte{uartIER: 0x0f, uartMCR: 0x1f} { // what a 16550A has of them
		c.out(reg, 0xff)
		if v := c.in(reg); v != bits {
			t.Errorf("register %d is %#x after ones", reg, v)
		}
		c.out(reg, 0)
	}
	c.out(uartFCR, fcrEnable)
	if v := c.in(uartIIR) >> 6; v != 3 {
		t.Errorf("IIR says FIFOs are %d", v)
	}
	c.out(uartSCR, 0xa5)
	if v := c.in(uartSCR); v != 0xa5 {
		t.Errorf("scratch is %#x", v)
	}
	c.out(uartLCR, lcrDivisor|3)
	c.out(uartData, 0x34)
	c.out(uartIER, 0x12)
	if c.in(uartData) != 0x34 || c.in(uartIER) != 0x12 {
		t.Error("the divisor is not kept")
	}
	c.out(uartLCR, 3)
	if c.in(uartIER) != 0 || c.in(uartLCR) != 3 {
		t.Error("the divisor is in the registers behind it")
	}
	if v := c.in(uartLSR); v != lsrEmpty|lsrAllEmpty {
		t.Errorf("LSR is %#x", v)
	}
}

func TestEachByteSentIsFollowedByAnInterrupt(t *testing.T) {
	c := newCom(t)
	c.out(uartIER, ierTransmit)
	if level, _ := c.raised(); !level {
		t.Fatal("no interrupt of an empty transmitter that was just asked for")
	}
	if v := c.in(uartIIR); v != iirTransmit {
		t.Errorf("IIR is %#x", v)
	}
	if level, _ := c.raised(); level || c.in(uartIIR) != iirNone {
		t.Error("reading IIR does not acknowledge")
	}
	_, before := c.raised()
	for i := range 5 { // each is an edge: the line may be one that counts those
		c.out(uartData, 'x')
		if _, n := c.raised(); n != before+i+1 {
			t.Fatalf("%d edges after %d bytes", n-before, i+1)
		}
	}
}

func TestInputWaitsUntilItIsRead(t *testing.T) {
	c := newCom(t)
	n, err := c.Input(c.gate, []byte("hello"))
	if n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if level, _ := c.raised(); level {
		t.Error("an interrupt that was not asked for")
	}
	c.out(uartIER, ierReceive)
	var got []byte
	for c.in(uartLSR)&lsrReady != 0 {
		if level, _ := c.raised(); !level || c.in(uartIIR) != iirReceive {
			t.Error("no interrupt with input waiting")
		}
		got = append(got, c.in(uartData))
	}
	if string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	if level, _ := c.raised(); level {
		t.Error("an interrupt without input")
	}
	long := make([]byte, serialInput+100)
	if n, err := c.Input(c.gate, long); n != serialInput || !errors.Is(err, ErrFull) {
		t.Error(n, err)
	}
	for _, fcr := range []byte{fcrEnable, fcrEnable | fcrClearReceive, 0} { // switched on, cleared, switched off
		if c.in(uartLSR)&lsrReady == 0 {
			t.Error("no input to be cleared")
		}
		c.out(uartFCR, fcr)
		if c.in(uartLSR)&lsrReady != 0 {
			t.Errorf("input is left in a FIFO after %#x", fcr)
		}
		if n, err := c.Input(c.gate, []byte("x")); n != 1 || err != nil {
			t.Error(n, err)
		}
	}
}

func TestInputTypedInAPauseRaisesNoLineBeforeItsEnd(t *testing.T) {
	c := newCom(t)
	c.out(uartIER, ierReceive)
	must(t, c.gate.Close(t.Context()))
	if n, err := c.Input(c.gate, []byte("ls\n")); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if level, _ := c.raised(); level {
		t.Error("an interrupt in a pause")
	}
	saved := stream(t, c.Serial)
	c.gate.Open()
	c.Kick()
	twin := newCom(t)
	must(t, load(twin.Serial, saved))
	for _, side := range []*com{c, twin} {
		if level, _ := side.raised(); !level {
			t.Error("no interrupt after the pause")
		}
		if got := string([]byte{side.in(uartData), side.in(uartData), side.in(uartData)}); got != "ls\n" {
			t.Errorf("read %q", got)
		}
	}
}

// blocked is a writer that takes nothing until it is let.
type blocked struct {
	begun, let chan struct{}
	mu         sync.Mutex
	got        bytes.Buffer
}

func (w *blocked) Write(p []byte) (int, error) {
	w.begun <- struct{}{}
	<-w.let
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got.Write(p)
}

// A guest that waits for the transmitter, as all do, loses nothing to a console
// that is slow, and can be paused and saved meanwhile.
func TestAConsoleThatBlocksMakesThePortBusy(t *testing.T) {
	b := newBoard(t)
	w := &blocked{begun: make(chan struct{}), let: make(chan struct{})}
	con := NewConsole(w, nil)
	s := NewSerial(con, b.line)
	c := &com{b, s, con}
	c.out(uartIER, ierTransmit)
	sent := 0
	send := func() {
		for c.in(uartLSR)&lsrEmpty != 0 {
			c.out(uartData, byte('a'+sent%26))
			sent++
		}
	}
	run(func(ctx context.Context, g *Gate) { con.Work(ctx, g, s) }, b.gate, func() {
		c.out(uartData, 'a')
		sent++
		<-w.begun
		send()
		if sent != 1+serialOutput {
			t.Errorf("busy after %d bytes", sent)
		}
		if level, _ := b.raised(); level {
			t.Error("an interrupt of a transmitter that is busy")
		}
		must(t, b.gate.Close(t.Context())) // does not wait for the console
		twin := newCom(t)
		must(t, load(twin.Serial, stream(t, s)))
		if level, _ := twin.raised(); !level {
			t.Error("the twin, whose console is not full, waits for this one's")
		}
		w.let <- struct{}{}
		<-w.begun
		if level, _ := b.raised(); level {
			t.Error("an interrupt in a pause")
		}
		b.gate.Open()
		c.Kick()
		if level, _ := b.raised(); !level {
			t.Error("no interrupt of a transmitter that is empty again")
		}
		send()
		close(w.let)
		go func() {
			for range w.begun {
			}
		}()
	})
	close(w.begun)
	want := strings.Repeat("abcdefghijklmnopqrstuvwxyz", sent/26+1)[:sent]
	if w.got.String() != want {
		t.Errorf("%d bytes sent, %d written, or others", sent, w.got.Len())
	}
}

// That the console of this host was full is no news to a guest that came from another, whose
// transmitter was not busy.
func TestAGuestIsNotToldOfAConsoleThatItHasNotSeen(t *testing.T) {
	c := newCom(t)
	c.out(uartIER, ierTransmit)
	c.in(uartIIR) // acknowledged
	state := stream(t, c.Serial)
	c.con.buf = c.con.buf[:serialOutput]
	if c.in(uartLSR)&lsrEmpty != 0 {
		t.Fatal("the transmitter is not busy")
	}
	must(t, load(c.Serial, state))
	c.con.buf = c.con.buf[:0]
	c.Kick()
	if level, _ := c.raised(); level {
		t.Error("an interrupt of a transmitter that was not busy")
	}
}

// What a host ends while the console is slow, and runs again, without a pause in between.
func TestAPortThatWasBusyWhenTheConsoleEndedIsNotBusyForEver(t *testing.T) {
	b := newBoard(t)
	w := &blocked{begun: make(chan struct{}), let: make(chan struct{})}
	con := NewConsole(w, nil)
	s := NewSerial(con, b.line)
	c := &com{b, s, con}
	c.out(uartIER, ierTransmit)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		con.Work(ctx, b.gate, s)
		close(ended)
	}()
	c.out(uartData, 'a')
	<-w.begun
	for c.in(uartLSR)&lsrEmpty != 0 {
		c.out(uartData, 'b')
	}
	stop()
	w.let <- struct{}{}
	<-w.begun
	w.let <- struct{}{}
	<-ended
	if level, _ := b.raised(); level {
		t.Fatal("the port has been told of room already")
	}
	con.Work(ctx, b.gate, s) // ends when it has looked
	if level, _ := b.raised(); !level {
		t.Error("no interrupt of a transmitter that is empty again")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestAConsoleThatFailsDiscards(t *testing.T) {
	b := newBoard(t)
	con := NewConsole(failing{}, nil)
	s := NewSerial(con, b.line)
	c := &com{b, s, con}
	run(func(ctx context.Context, g *Gate) { con.Work(ctx, g, s) }, b.gate, func() { c.out(uartData, 'a') })
	for range serialOutput * 2 {
		c.out(uartData, 'a')
	}
	if c.in(uartLSR)&lsrEmpty == 0 {
		t.Error("the port is busy for ever")
	}
}

// breaking is a console that has begun to take something when it breaks.
type breaking struct{ begun, breaks chan struct{} }

func (w breaking) Write([]byte) (int, error) {
	close(w.begun)
	<-w.breaks
	return 0, errors.New("nobody reads")
}

func TestWhatTheGuestWritesWhileTheConsoleBreaksIsDiscarded(t *testing.T) {
	b := newBoard(t)
	w := breaking{make(chan struct{}), make(chan struct{})}
	con := NewConsole(w, nil)
	s := NewSerial(con, b.line)
	c := &com{b, s, con}
	c.out(uartIER, ierTransmit)
	run(func(ctx context.Context, g *Gate) { con.Work(ctx, g, s) }, b.gate, func() {
		c.out(uartData, 'a')
		<-w.begun
		for c.in(uartLSR)&lsrEmpty != 0 {
			c.out(uartData, 'b')
		}
		close(w.breaks)
		for told := false; !told; { // that the transmitter is empty
			runtime.Gosched()
			told, _ = b.raised()
		}
	})
	if c.in(uartLSR)&lsrEmpty == 0 {
		t.Error("the port is busy for ever")
	}
	if n := len(con.buf); n != 0 {
		t.Errorf("%d bytes wait for a console that there is not", n)
	}
}

func TestTheLoopGivesBackWhatIsSent(t *testing.T) {
	c := newCom(t)
	c.out(uartMCR, mcrLoop)
	c.out(uartData, 'q')
	if c.in(uartLSR)&lsrReady == 0 || c.in(uartData) != 'q' {
		t.Error("nothing came back")
	}
	if len(c.con.buf) != 0 {
		t.Error("it left, too")
	}
}

func TestASerialPortAllocatesNothing(t *testing.T) {
	c := newCom(t)
	p := []byte{'x'}
	if n := testing.AllocsPerRun(1000, func() {
		c.Out(uartData, p)
		c.In(uartLSR, p)
		c.In(uartIIR, p)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
