package standby_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
)

// A stream that breaks off leaves devices and memory in a Copy, which would be mixed with those of the next one.
func TestACopyThatHasBegunOneStreamTakesNoOther(t *testing.T) {
	whole := replay(t, noneGuest(t), standby.Config{}, nil)
	stream := put(t, whole.Copy)
	for cut := 0; cut <= len(stream); cut += 1 + cut/50 {
		g := standby.New(standby.Config{})
		first := g.Read(qemufile.NewReader(bytes.NewReader(stream[:cut])))
		err := g.Read(qemufile.NewReader(bytes.NewReader(stream)))
		if err == nil || !strings.Contains(err.Error(), "serves one session") {
			t.Errorf("after %d of %d bytes (%v) another stream is taken: %v", cut, len(stream), first, err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}
