package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// taken takes all that waits for a vCPU and returns the numbers.
func taken(t *testing.T, in *inputs, vcpu int) (got []uint64) {
	t.Helper()
	for {
		ok, err := in.take(vcpu, func(frame []byte) error {
			i, err := guest.ParseInput(frame)
			got = append(got, i.M)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return got
		}
	}
}

func TestInputWaitsForItsVCPUInOrderAndIsPartOfTheGuest(t *testing.T) {
	here, there := newInputs(2), newInputs(2)
	for m := range uint64(3) {
		if err := here.deliver(guest.Input{VCPU: 1, M: m + 1}.AppendFrame(nil)); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range [][]byte{[]byte("noise"), guest.Input{VCPU: 2, M: 1}.AppendFrame(nil)} {
		if err := here.deliver(other); err != nil {
			t.Errorf("a packet for somebody else: %v", err)
		}
	}
	there.deliver(guest.Input{VCPU: 0, M: 9}.AppendFrame(nil)) // of the guest that is rolled back

	var save, load vmstate.Registry
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	err := errors.Join(save.Register(here.entry(), here), load.Register(there.entry(), there), save.SaveDevices(w))
	vmstate.PutEOF(w)
	if err = errors.Join(err, w.Flush(), load.LoadDevices(stream.Bytes(), nil)); err != nil {
		t.Fatal(err)
	}
	load.Rollback()
	if got := taken(t, there, 0); len(got) != 1 || got[0] != 9 {
		t.Errorf("rolled back, the guest takes %v, want what it had", got)
	}
	if err := errors.Join(load.LoadDevices(stream.Bytes(), nil), load.Commit()); err != nil {
		t.Fatal(err)
	}
	for _, in := range []*inputs{here, there} {
		if got := taken(t, in, 1); len(got) != 3 || got[0] != 1 || got[2] != 3 || taken(t, in, 0) != nil {
			t.Errorf("the vCPU takes %v", got)
		}
	}
}

func TestARingThatIsFullRefusesInput(t *testing.T) {
	in := newInputs(1)
	frame := guest.Input{M: 1}.AppendFrame(nil)
	n := 0
	for in.deliver(frame) == nil {
		n++
	}
	if n != maxInputs {
		t.Errorf("%d packets fit", n)
	}
	if got := taken(t, in, 0); len(got) != n {
		t.Errorf("%d were taken", len(got))
	}
	if err := in.deliver(frame); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if _, err := in.take(0, func([]byte) error { return errRing }); err != errRing {
		t.Errorf("a vCPU that cannot take it: %v", err)
	}
	if got := taken(t, in, 0); len(got) != 1 {
		t.Errorf("it still waits, and %v is taken", got)
	}
}
