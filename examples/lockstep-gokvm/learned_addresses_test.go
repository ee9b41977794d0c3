package main

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
)

type still struct{}

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }

// The guest's addresses are learned of each frame, whichever way the card gives it.
func TestAFrameIsHeardWhetherItIsWrittenOrComposed(t *testing.T) {
	nic := proxy.NewPrimary(proxy.PrimaryConfig{VM: still{}, Deliver: func([]byte) error { return nil }})
	h := heard{nic, new(proxy.Neighbors), 0}
	frame := func(last byte) []byte {
		return append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, last, 8, 0}, make([]byte, 46)...)
	}
	if err := h.WritePacket(frame(1)); err != nil {
		t.Fatal(err)
	}
	if err := h.ComposePacket(60, func(b []byte) bool { return copy(b, frame(2)) == len(b) }); err != nil {
		t.Fatal(err)
	}
	if err := h.ComposePacket(60, func(b []byte) bool { copy(b, frame(3)); return false }); !errors.Is(err, filter.ErrFrame) {
		t.Errorf("a frame that is none: %v", err)
	}
	if all := h.known.All(); len(all) != 2 || all[0].MAC[5] != 1 || all[1].MAC[5] != 2 {
		t.Errorf("learned %v", all)
	}
}
