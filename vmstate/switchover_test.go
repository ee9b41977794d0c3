package vmstate

import (
	"bytes"
	"net"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestSwitchoverWaitsForEveryDevice(t *testing.T) {
	var reg Registry
	if !reg.Switchover().Approved() {
		t.Error("nobody has to approve")
	}
	for _, name := range []string{"a", "b"} {
		wantNil(t, "register", reg.RegisterLive(Entry{Name: name}, nil, &live{}))
	}
	s := reg.Switchover()
	if last, err := s.Approve(); last || err != nil || s.Approved() {
		t.Errorf("first: %t %v", last, err)
	}
	if last, err := s.Approve(); !last || err != nil || !s.Approved() {
		t.Errorf("second: %t %v", last, err)
	}
	_, err := s.Approve()
	wantError(t, "one approval too many", err, ErrSwitchover)
}

// Two devices of a destination approve one after the other; the source iterates
// until they have, and cannot stop the guest before.
func TestTheSourceWaitsForTheApproval(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	rr := &ReturnReader{R: qemufile.NewReader(here)}
	source := Registry{SwitchoverAcked: rr.SwitchoverAcked}
	l := &live{done: true}
	var target Registry
	for _, name := range []string{"a", "b"} {
		wantNil(t, "register", source.RegisterLive(Entry{Name: name}, l, nil))
		wantNil(t, "register", target.RegisterLive(Entry{Name: name}, nil, &live{}))
	}
	rw := &ReturnWriter{W: qemufile.NewWriter(there)}
	pending := target.Switchover()
	var out bytes.Buffer
	w := qemufile.NewWriter(&out)
	stop := func() error {
		if _, err := source.Capture(); err != nil {
			return err
		}
		return source.SaveComplete(w)
	}
	for range 2 {
		wantError(t, "too early", stop(), ErrSwitchover)
		wantError(t, "too early", source.SaveComplete(w), ErrSwitchover)
		last, err := pending.Approve()
		wantNil(t, "approve", err)
		if last {
			go rw.SwitchoverAck()
		}
	}
	m, err := rr.Next()
	if err != nil || m.Type != ReturnSwitchoverAck {
		t.Fatalf("%v, %v", m.Type, err)
	}
	wantNil(t, "agreed", stop())
	if wantNil(t, "flush", w.Flush()); out.Len() != 2*11 {
		t.Errorf("%d bytes were written, want two END sections", out.Len())
	}
}
