package protect

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A wire is an uplink in memory.
type wire struct {
	in     chan []byte
	out    []string
	closed chan struct{}
}

func newWire() *wire { return &wire{in: make(chan []byte), closed: make(chan struct{})} }

func (w *wire) ReadPacket() ([]byte, error) {
	select {
	case p := <-w.in:
		return p, nil
	case <-w.closed:
		return nil, io.EOF
	}
}

func (w *wire) WritePacket(p []byte) error { w.out = append(w.out, string(p)); return nil }
func (w *wire) Close() error               { close(w.closed); return nil }

func runNIC(t *testing.T, n *NIC, g Gate) (stop func() error) {
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, NetworkHost{Gate: g}) }()
	return func() error { cancel(errHalt); return <-done }
}

func TestNothingLeavesWhileTheGateIsShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := newWire(), failover.NewGate()
		n, err := NewNIC(NICConfig{Uplink: w})
		if err != nil {
			t.Fatal(err)
		}
		stop := runNIC(t, n, g)
		send := func(s ...string) {
			for i, p := range s {
				send := n.WritePacket
				if p == "2" { // so does one that is read
					send = func(p []byte) error {
						return n.ComposeAtMost(100, func(b []byte) int { return copy(b, p) })
					}
				} else if i > 0 || p == "3" { // composed ones go the same way
					send = func(p []byte) error {
						return n.ComposePacket(len(p), func(b []byte) bool { return copy(b, p) == len(b) })
					}
				}
				if err := send([]byte(p)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		send("1", "2")
		if len(w.out) != 0 {
			t.Errorf("%q left by a gate that was never open", w.out)
		}
		g.Until(time.Now().Add(time.Second))
		synctest.Wait()
		send("3")
		time.Sleep(time.Second) // and the gate shuts by itself
		send("4", "5")
		if !slices.Equal(w.out, []string{"1", "2", "3"}) {
			t.Errorf("%q left", w.out)
		}
		g.Until(time.Now().Add(time.Second))
		if err := n.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if !slices.Equal(w.out, []string{"1", "2", "3", "4", "5"}) {
			t.Errorf("%q left", w.out)
		}
		if err := stop(); err != errHalt {
			t.Error(err)
		}
	})
}

// What waited at a shut gate is void when this host begins to follow another.
func TestWhatWaitedIsVoidWhenTheHostFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := newWire(), failover.NewGate()
		n, _ := NewNIC(NICConfig{Uplink: w})
		stop := runNIC(t, n, g)
		n.WritePacket([]byte("mine"))
		n.WritePacket([]byte("mine too"))
		synctest.Wait()
		if err := n.Commit(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.Commit(1)
		n.WritePacket([]byte("the secondary's"))
		if err := n.Failover(); err != nil {
			t.Fatal(err)
		}
		g.Until(time.Now().Add(time.Second))
		synctest.Wait()
		if !slices.Equal(w.out, []string{"the secondary's"}) {
			t.Errorf("%q left", w.out)
		}
		stop()
	})
}

func TestInputReachesTheGuestOnlyWhileItIsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		var got []string
		n, _ := NewNIC(NICConfig{Uplink: w, Deliver: func(p []byte) { got = append(got, string(p)) }})
		stop := runNIC(t, n, failover.NewGate())
		for _, on := range []bool{false, true, false} {
			n.Input(on)
			w.in <- []byte(map[bool]string{true: "on", false: "off"}[on])
			synctest.Wait()
		}
		if !slices.Equal(got, []string{"on"}) {
			t.Errorf("%q", got)
		}
		n.Input(true) // it stood still for a checkpoint
		synctest.Wait()
		if !slices.Equal(got, []string{"on", "off"}) {
			t.Errorf("after a pause of the guest: %q", got)
		}
		n.Input(false)
		n.Commit(0) // it follows
		w.in <- []byte("another's")
		synctest.Wait()
		n.Input(true) // it has taken over
		w.in <- []byte("its own")
		synctest.Wait()
		if !slices.Equal(got, []string{"on", "off", "its own"}) {
			t.Errorf("after a change of sides: %q", got)
		}
		stop()
	})
}

func TestUplinkThatEndsEndsTheNIC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		n, _ := NewNIC(NICConfig{Uplink: closesOnce{w, false}})
		done := make(chan error)
		go func() { done <- n.Run(t.Context(), NetworkHost{Gate: failover.NewGate()}) }()
		synctest.Wait()
		n.WritePacket([]byte("x"))
		w.Close()
		if err := <-done; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if err := n.Drain(t.Context()); err != errNotRun && err != nil {
			t.Error(err)
		}
	})
}

// The goroutine of Run may begin after a verb that drains the NIC.
func TestADrainThatComesBeforeRunWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		n, _ := NewNIC(NICConfig{Uplink: w})
		n.WritePacket([]byte("x"))
		drained := make(chan error, 1)
		go func() { drained <- n.Drain(t.Context()) }()
		time.Sleep(time.Second)
		select {
		case err := <-drained:
			t.Fatalf("drained before Run: %v", err)
		default:
		}
		ctx, cancel := context.WithCancel(t.Context())
		gate := failover.NewGate()
		gate.Until(time.Now().Add(time.Minute))
		done := make(chan error)
		go func() { done <- n.Run(ctx, NetworkHost{Gate: gate}) }()
		if err := <-drained; err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
}

// What a guest inherits in a takeover is its output like any other: a host that gives the guest
// on before it has left would have it leave while the next one sends.
func TestADrainWaitsForWhatTheGuestHasInherited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := newWire(), failover.NewGate()
		p, _ := NewNIC(NICConfig{Uplink: newWire()})
		n, _ := NewNIC(NICConfig{Uplink: w})
		p.WritePacket([]byte("the primary's"))
		p.Mark(0)
		var here, there vmstate.Registry
		if err := errors.Join(p.Register(&there), n.Register(&here)); err != nil {
			t.Fatal(err)
		}
		var state bytes.Buffer
		q := qemufile.NewWriter(&state)
		if err := there.SaveDevices(q); err != nil {
			t.Fatal(err)
		}
		vmstate.PutEOF(q)
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := here.Load(qemufile.NewReader(&state), nil); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(here.Commit(), n.Commit(0), n.Failover()); err != nil {
			t.Fatal(err)
		}
		stop := runNIC(t, n, g)
		drained := make(chan error, 1)
		go func() { drained <- n.Drain(t.Context()) }()
		time.Sleep(time.Second)
		select {
		case err := <-drained:
			t.Errorf("drained at a shut gate: %v", err)
		default:
		}
		g.Until(time.Now().Add(time.Second))
		if err := <-drained; err != nil || !slices.Equal(w.out, []string{"the primary's"}) {
			t.Errorf("%q left: %v", w.out, err)
		}
		stop()
	})
}

// closesOnce is a wire that counts as closed after its first Close.
type closesOnce struct {
	*wire
	_ bool
}

func (closesOnce) Close() error { return nil }

func TestWaitingAtTheGateEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := NewNIC(NICConfig{Uplink: newWire()})
		stop := runNIC(t, n, failover.NewGate())
		n.WritePacket([]byte("x"))
		synctest.Wait()
		if err := stop(); !errors.Is(err, errHalt) {
			t.Error(err)
		}
	})
}

func TestASessionIsToldWhatAllNICsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all nets
		for range 2 {
			n, err := NewNIC(NICConfig{Uplink: struct{ Uplink }{}})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(n.Mark(0), n.WritePacket([]byte("abc"))); err != nil {
				t.Fatal(err)
			}
			all = append(all, n)
			time.Sleep(time.Second)
		}
		all = append(all, struct{ Network }{}) // one that the host has made, which does not tell
		var holder colo.OutputHolder = all
		if got, want := holder.HeldOutput(), (colo.Held{Packets: 2, Bytes: 6, Age: 2 * time.Second}); got != want {
			t.Errorf("%+v is held, want %+v", got, want)
		}
	})
}
