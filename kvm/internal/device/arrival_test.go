package device

import (
	"context"
	"runtime"
	"sync"
	"testing"
)

// What comes while the gate is being opened is either found by the Kick that follows, or looked
// at by the goroutine that brings it: nobody else would before the next pause.
func TestWhatComesWhileTheGateOpensDoesNotWait(t *testing.T) {
	type arrival struct {
		gate   *Gate
		mu     *sync.Mutex
		bring  func() error
		kick   func()
		landed func() bool
	}
	var arrivals map[string]arrival
	for i := range 100 {
		if i%50 == 0 { // before what is not taken out fills them
			r, c := newNetRig(t), newCom(t)
			for head := range uint16(50) {
				r.room(2*head, 100)
			}
			c.out(uartIER, ierReceive)
			arrivals = map[string]arrival{
				"a frame": {r.gate, &r.nic.mu, func() error { return r.nic.Receive(r.gate, frame(1, 60)) }, r.nic.Kick,
					func() bool { return len(r.rx.used()) == 1 }},
				"a byte": {c.gate, &c.Serial.mu, func() error { _, err := c.Input(c.gate, []byte{1}); return err }, c.Kick,
					func() bool { level, _ := c.raised(); c.in(uartData); return level }},
			}
		}
		for what, a := range arrivals {
			must(t, a.gate.Close(t.Context()))
			a.mu.Lock() // the device is busy, so that what comes has to wait
			brought := make(chan error)
			go func() { brought <- a.bring() }()
			for range 10 {
				runtime.Gosched()
			}
			a.gate.Open()
			a.mu.Unlock()
			a.kick()
			must(t, <-brought)
			if !a.landed() {
				t.Fatalf("%s is not shown to the guest, round %d", what, i)
			}
		}
	}
}

// A device whose Work is to end begins nothing more, though the guest runs and has more for it.
func TestADeviceThatIsToEndBeginsNothingMore(t *testing.T) {
	g := NewGate()
	g.Open()
	ctx, stop := context.WithCancel(t.Context())
	w, steps := make(worker, 1), 0
	w.kick()
	w.run(ctx, g, func() bool {
		if steps++; steps == 3 {
			stop()
		}
		return steps < 10
	}, nil)
	if steps != 3 {
		t.Errorf("%d steps, want 3", steps)
	}
	select {
	case <-w: // for whoever runs next
	default:
		t.Error("nobody is woken for what is left")
	}
}
