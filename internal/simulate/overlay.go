package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// errToolchain says that the lines of a toolchain's runtime are not known.
var errToolchain = errors.New("this toolchain's runtime is not known")

// A change replaces a text that a file of package runtime has once.
type change struct{ why, file, old, new string }

// changes are for Go 1.26.
var changes = []change{
	{
		"a bubble draws for itself", "synctest.go",
		"\tid      uint64 // unique id\n",
		"\tid      uint64 // unique id\n\tdrawn   [3]uint64\n",
	},
	{
		"what it draws is the same each time, and does not depend on what else is drawn", "synctest.go",
		"var bubbleGen atomic.Uint64 // bubble ID counter\n",
		`var bubbleGen atomic.Uint64 // bubble ID counter

const (
	drawnForSelect = iota
	drawnForTimer
	drawnForMap
)

// draw is SplitMix64.
//
//go:nosplit
func (b *synctestBubble) draw(what int) uint64 {
	b.drawn[what] += 0x9e3779b97f4a7c15
	z := b.drawn[what]
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func bubbledRand(what int) uint32 {
	if b := getg().bubble; b != nil {
		return uint32(b.draw(what) >> 32)
	}
	return cheaprand()
}
`,
	},
	{
		"the cases of a select", "select.go",
		"j := cheaprandn(uint32(norder + 1))",
		"j := uint32(uint64(bubbledRand(drawnForSelect)) * uint64(norder+1) >> 32)",
	},
	{
		// A select puts its channels in the order of their addresses, and each timer among
		// them draws when it is waited for.
		"the timers of a select draw in the order of its cases, not of addresses", "select.go",
		"\n\t\tif c.timer != nil {\n\t\t\tblockTimerChan(c)\n\t\t}\n\t}\n",
		"\n\t}\n\tfor _, casei := range pollorder {\n\t\tif c := scases[casei].c; c.timer != nil {\n\t\t\tblockTimerChan(c)\n\t\t}\n\t}\n",
	},
	{
		"where a large map puts what it has", "alg.go",
		"\t\tkey[i] = bootstrapRand()\n",
		"\t\tkey[i] = 0x9e3779b97f4a7c15 * uint64(i+1)\n",
	},
	{
		"timers that are due at the same time", "time.go",
		"t.rand = cheaprand()",
		"t.rand = bubbledRand(drawnForTimer)",
	},
	{
		"maps, and math/rand without a source", "rand.go",
		"\tmp := getg().m\n\tc := &mp.chacha8\n",
		"\tif b := getg().bubble; b != nil {\n\t\treturn b.draw(drawnForMap)\n\t}\n\tmp := getg().m\n\tc := &mp.chacha8\n",
	},
	{
		"a mutex that somebody waits for too long is handed on: too long by the bubble's clock", "sema.go",
		"func internal_sync_nanotime() int64 {\n",
		"func internal_sync_nanotime() int64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn b.now\n\t}\n",
	},
	{
		"who yields goes to the end of the queue", "proc.go",
		"func Gosched() {\n",
		"func Gosched() {\n\tif getg().bubble != nil {\n\t\tgoyield()\n\t\treturn\n\t}\n",
	},
	{
		"nobody is preempted, and nobody's processor is taken in a system call", "proc.go",
		"\t\tpd := &pp.sysmontick\n\t\tsysretake := false\n",
		"\t\tif mp := pp.m.ptr(); mp != nil && mp.curg != nil && mp.curg.bubble != nil && !sched.gcwaiting.Load() {\n\t\t\tcontinue\n\t\t}\n\t\tpd := &pp.sysmontick\n\t\tsysretake := false\n",
	},
}

// writeOverlay writes an overlay into dir, where it must stay while it is used, and
// returns the path of what the go command takes as -overlay. The error is
// errToolchain, or that of a file.
//
// The overlay makes the Go runtime repeat itself inside a bubble of
// testing/synctest: which case of a select is taken when several can be, which of
// two timers rings first that are due at the same time, where the iteration of a map
// begins. Outside a bubble nothing changes. A test that runs in a bubble, on one P
// (GOMAXPROCS=1) and with the garbage collector off (which stops the world in the
// middle of things) does the same to the last bit whenever it runs.
//
// It is done by an overlay for the go command, which replaces some lines of package
// runtime for one build. The runtime is built for it anew, once, which takes the
// better part of a minute. Go has no promise about those lines: the error is
// errToolchain where they are not as this file knows them.
func writeOverlay(dir string) (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("replay: go env: %w", err)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, c := range changes {
		from := filepath.Join(strings.TrimSpace(string(root)), "src", "runtime", c.file)
		to := filepath.Join(dir, "runtime_"+c.file)
		read := from
		if replace[from] != "" {
			read = to
		}
		source, err := os.ReadFile(read)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(source), c.old); n != 1 {
			return "", fmt.Errorf("%w: %s has the place of %q %d times", errToolchain, c.file, c.why, n)
		}
		if err := os.WriteFile(to, []byte(strings.Replace(string(source), c.old, c.new, 1)), 0o600); err != nil {
			return "", err
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}
