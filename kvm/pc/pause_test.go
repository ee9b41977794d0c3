//go:build linux && amd64

package pc

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// A write that replication holds keeps a pause waiting, but not for longer than its
// context, and the guest is then not paused.
func TestAPauseWaitsForABusyDeviceAsLongAsItMay(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	h, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	background := context.Background()
	if err := h.Resume(background); err != nil {
		t.Fatal(err)
	}
	if !h.gate.Enter(background) {
		t.Fatal("a guest that runs keeps its devices out")
	}
	ctx, cancel := context.WithCancel(background)
	stopped := make(chan error)
	go func() { stopped <- h.Pause(ctx) }()
	for h.gate.TryEnter() { // until Pause has closed it
		h.gate.Leave()
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Error("Pause:", err)
	}
	if h.paused.Load() || !h.gate.TryEnter() {
		t.Error("the guest is stuck half way")
	}
	h.gate.Leave()
	h.gate.Leave()
	if err := h.Pause(background); err != nil {
		t.Error(err)
	}
	if h.gate.TryEnter() {
		t.Error("a paused guest's devices work")
	}
	// Pauses nest: one of two undone leaves the guest paused.
	if err := errors.Join(h.Pause(background), h.Resume(background)); err != nil {
		t.Error(err)
	}
	if !h.paused.Load() || h.gate.TryEnter() {
		t.Error("one Resume has undone two Pauses")
	}
	if err := h.Resume(background); err != nil {
		t.Error(err)
	}
	if h.paused.Load() || !h.gate.TryEnter() {
		t.Error("two Resumes have not undone two Pauses")
	}
	h.gate.Leave()
}
