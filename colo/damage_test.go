package colo_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
)

// A secondary whose primary sends a checkpoint that was damaged goes on from one that was whole, and
// one whose guest has not come yet has none.
func TestADamagedCheckpointLeavesTheLastOne(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	good, err := feed(t, slices.Concat(r.initial, r.first), options{})
	if err != nil {
		t.Fatal(err)
	}
	defer good.close()
	second := r.second(r.ram, r.devices)
	in := damage.Input{Bytes: second, Cuts: marks(second, r.ramID)}
	first := damage.Input{Bytes: slices.Concat(r.first, second), Cuts: marks(slices.Concat(r.first, second), r.ramID)}
	for how, p := range damage.Copies(1, require.Many(20, 200, 3000), in, first) {
		if goesOnAsItWas(t, r, good, p); t.Failed() {
			t.Fatal(how)
		}
	}
	empty, err := feed(t, nil, options{})
	if err == nil {
		t.Fatal("a secondary without a guest has taken over")
	}
	defer empty.close()
	initial := damage.Input{Bytes: r.initial, Cuts: marks(r.initial, r.ramID)}
	refused := 0
	for how, p := range damage.Copies(2, require.Many(20, 100, 1000), initial, first) {
		v, err := feed(t, p, options{})
		if err != nil && v.committed() == 0 { // or it was whole, and what follows was
			refused++
			var e *colo.Error
			if !errors.As(err, &e) || !v.guest.Paused() || !bytes.Equal(v.guest.Memory(), empty.guest.Memory()) {
				t.Errorf("%s: the guest was touched: %v", how, err)
			}
		}
		v.close()
	}
	if refused == 0 {
		t.Error("none was refused")
	}
}

// marks returns where the records of memory, the sections and the messages of a session may begin.
func marks(p []byte, id uint32) (cuts []int) {
	footer := append([]byte{0x7e}, be32(id)...)
	for at := range len(p) - 8 {
		word := binary.BigEndian.Uint64(p[at:])
		if word>>32 == 0 && word != 0 && word&0xfff&^0x20 <= 0x10 && word&0xfff > 1 && word < 1<<24 || bytes.HasPrefix(p[at:], footer) {
			cuts = append(cuts, at)
		}
	}
	return cuts
}
