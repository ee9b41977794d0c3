package multifd

import (
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
)

// What was damaged on its way over a channel is read as it is, or refused.
func TestADamagedChannelIsReadAsItIs(t *testing.T) {
	in := damage.Input{Bytes: written(t, Init{}.Put)}
	for _, p := range packets() {
		if len(p.Data) < 1<<16 {
			in.Cuts = append(in.Cuts, len(in.Bytes))
			in.Bytes = append(in.Bytes, written(t, p.Put)...)
		}
	}
	whole := damage.Input{Bytes: in.Bytes[len(written(t, Init{}.Put)):]} // as a QEMU goes on
	for _, at := range in.Cuts {
		whole.Cuts = append(whole.Cuts, at-in.Cuts[0])
	}
	for i, in := range []damage.Input{in, whole} {
		for how, p := range damage.Copies(uint64(i), require.Many(50, 200, 2000), in) {
			if readsAsItIsWritten(t, p); t.Failed() {
				t.Fatal(how)
			}
		}
	}
}
