package main

import (
	"fmt"
	"os"
	"strings"
)

// length returns how many blocks the image has, or 0 if there is none.
func (h *trialHost) length() int64 {
	st, err := os.Stat(h.image)
	if err != nil {
		return 0
	}
	return st.Size() / trialBlock
}

// size returns the arguments with which the image is made, if it has not grown.
func (h *trialHost) size() []string {
	if h.length() > trialBlocks {
		return nil
	}
	return []string{"-size", fmt.Sprint(trialBlock * trialBlocks)}
}

// lengthen makes the image of h, which no process uses, as long as that of the other host, if that is longer:
// the one that led grew last, and the one that follows was killed before, or a growth was interrupted.
func (k *killTrial) lengthen(h, other *trialHost) {
	k.t.Helper()
	if n := other.length(); h.length() > 0 && h.length() < n {
		if err := os.Truncate(h.image, n*trialBlock); err != nil {
			k.t.Fatal(err)
		}
	}
}

// grow has a host make its disk longer, and reports whether it has.
func (k *killTrial) grow(h *trialHost, blocks int64) bool {
	k.t.Helper()
	said := h.of.order(fmt.Sprintf("grow %d", blocks*trialBlock), "grown: ", "error")
	if !strings.Contains(said, "grown: ") {
		if said != "" && !k.follow.dead() {
			k.t.Fatalf("grow says %q", said)
		}
		return false
	}
	k.growths++
	return true
}
