// Package replay changes the Go runtime for one build, so that a test that runs in a bubble of
// testing/synctest repeats itself to the last bit, and so that the clock of the day of a bubble
// can be set while its time goes on.
package replay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ErrToolchain says that the lines of a toolchain's runtime are not known. It is matched by errors
// of [WriteOverlay].
var ErrToolchain = errors.New("replay: this toolchain's runtime is not known")

// A change replaces a text that a file of the standard library has once.
type change struct{ why, file, old, new string }

// days are the changes for Go 1.26 by which a bubble has a clock of the day.
var days = []change{
	{
		"by how much the clock of the day is ahead", "runtime/synctest.go",
		"\tnow     int64  // current fake time\n",
		"\tnow     int64  // current fake time\n\tdated   bool   // it has a clock of the day, which can be set\n\tahead   int64  // by how much that is ahead of now\n",
	},
	{
		"a time has a monotonic reading, as outside of bubbles, and the time of the day", "runtime/time.go",
		"\t\tsec = bubble.now / (1000 * 1000 * 1000)\n",
		"\t\tif bubble.dated {\n\t\t\tday := bubble.now + bubble.ahead\n\t\t\treturn day / (1000 * 1000 * 1000), int32(day % (1000 * 1000 * 1000)), bubble.now\n\t\t}\n\t\tsec = bubble.now / (1000 * 1000 * 1000)\n",
	},
	{
		"who sets it", "runtime/time.go",
		"// A timer is a potentially repeating trigger for calling t.f(t.arg, t.seq).\n",
		`// setBubbleDay sets by how many nanoseconds the clock of the day of the bubble is ahead of its time.
//
//go:linkname setBubbleDay
func setBubbleDay(ahead int64) {
	if b := getg().bubble; b != nil {
		b.dated, b.ahead = true, ahead
	}
}

// A timer is a potentially repeating trigger for calling t.f(t.arg, t.seq).
`,
	},
}

// exactly are the changes for Go 1.26 by which a bubble repeats itself.
var exactly = []change{
	{
		"a bubble draws for itself", "runtime/synctest.go",
		"\tid      uint64 // unique id\n",
		"\tid      uint64 // unique id\n\tdrawn   [3]uint64\n",
	},
	{
		"what it draws is the same each time, and does not depend on what else is drawn", "runtime/synctest.go",
		"var bubbleGen atomic.Uint64 // bubble ID counter\n",
		`var bubbleGen atomic.Uint64 // bubble ID counter

const (
	drawnForSelect = iota
	drawnForTimer
	drawnByName // by the packages math/rand, math/rand/v2 and os
)

// draw is SplitMix64.
//
//go:nosplit
func (b *synctestBubble) draw(what int) uint64 {
	b.drawn[what] += 0x9e3779b97f4a7c15
	return mixed(b.drawn[what])
}

//go:nosplit
func (b *synctestBubble) drawNow() uint64 { return mixed(uint64(b.now)) }

//go:nosplit
func mixed(z uint64) uint64 {
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

//go:linkname bubbledRand64
func bubbledRand64() uint64 {
	if b := getg().bubble; b != nil {
		return b.draw(drawnByName)
	}
	return rand()
}
`,
	},
	{
		"the cases of a select", "runtime/select.go",
		"j := cheaprandn(uint32(norder + 1))",
		"j := uint32(uint64(bubbledRand(drawnForSelect)) * uint64(norder+1) >> 32)",
	},
	{
		// A select puts its channels in the order of their addresses, and each timer among
		// them draws when it is waited for.
		"the timers of a select draw in the order of its cases, not of addresses", "runtime/select.go",
		"\n\t\tif c.timer != nil {\n\t\t\tblockTimerChan(c)\n\t\t}\n\t}\n",
		"\n\t}\n\tfor _, casei := range pollorder {\n\t\tif c := scases[casei].c; c.timer != nil {\n\t\t\tblockTimerChan(c)\n\t\t}\n\t}\n",
	},
	{
		"where a large map puts what it has", "runtime/alg.go",
		"\t\tkey[i] = bootstrapRand()\n",
		"\t\tkey[i] = 0x9e3779b97f4a7c15 * uint64(i+1)\n",
	},
	{
		"timers that are due at the same time", "runtime/time.go",
		"t.rand = cheaprand()",
		"t.rand = bubbledRand(drawnForTimer)",
	},
	{
		// Not one after the other: what is parsed once in a process, or kept until the next
		// collection, makes maps in one run of a seed and none in the next.
		"what maps draw depends on the time of the bubble alone", "runtime/rand.go",
		"\tmp := getg().m\n\tc := &mp.chacha8\n",
		"\tif b := getg().bubble; b != nil {\n\t\treturn b.drawNow()\n\t}\n\tmp := getg().m\n\tc := &mp.chacha8\n",
	},
	{
		"math/rand without a source", "math/rand/rand.go",
		"//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.bubbledRand64\n",
	},
	{
		"math/rand/v2 without a source", "math/rand/v2/rand.go",
		"//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.bubbledRand64\n",
	},
	{
		"names of temporary files, which are drawn until there is no such file", "os/tempfile.go",
		"//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.bubbledRand64\n",
	},
	{
		"a mutex that somebody waits for too long is handed on: too long by the bubble's clock", "runtime/sema.go",
		"func internal_sync_nanotime() int64 {\n",
		"func internal_sync_nanotime() int64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn b.now\n\t}\n",
	},
	{
		"who yields goes to the end of the queue", "runtime/proc.go",
		"func Gosched() {\n",
		"func Gosched() {\n\tif getg().bubble != nil {\n\t\tgoyield()\n\t\treturn\n\t}\n",
	},
	{
		"nobody is preempted, and nobody's processor is taken in a system call", "runtime/proc.go",
		"\t\tpd := &pp.sysmontick\n\t\tsysretake := false\n",
		"\t\tif mp := pp.m.ptr(); mp != nil && mp.curg != nil && mp.curg.bubble != nil && !sched.gcwaiting.Load() {\n\t\t\tcontinue\n\t\t}\n\t\tpd := &pp.sysmontick\n\t\tsysretake := false\n",
	},
	{
		// A map of more than eight puts its keys by their hashes, which pointers have by where in memory
		// they point to.
		"of many contexts that end with another the order is that in which they were made", "context/context.go",
		"\tchildren map[canceler]struct{} //",
		"\tcame     int\n\tmany     bool // there were ever more than a small map has room for\n\tchildren map[canceler]int //",
	},
	{
		"each context has a number", "context/context.go",
		"\t\t\t\tp.children = make(map[canceler]struct{})\n\t\t\t}\n\t\t\tp.children[child] = struct{}{}\n",
		"\t\t\t\tp.children = make(map[canceler]int)\n\t\t\t}\n\t\t\tp.came++\n\t\t\tp.children[child] = p.came\n\t\t\tp.many = p.many || len(p.children) > 8\n",
	},
	{
		"they end by their numbers", "context/context.go",
		"\tfor child := range c.children {\n",
		`	inOrder := make([]canceler, 0, len(c.children))
	for child := range c.children {
		inOrder = append(inOrder, child)
		for i := len(inOrder) - 1; c.many && i > 0 && c.children[inOrder[i]] < c.children[inOrder[i-1]]; i-- {
			inOrder[i], inOrder[i-1] = inOrder[i-1], inOrder[i]
		}
	}
	for _, child := range inOrder {
`,
	},
}

// Tag is the build tag of files that use what an overlay adds to the runtime.
const Tag = "replay"

// WriteOverlay writes an overlay into dir, where it must stay while it is used, and
// returns the path of what the go command takes as -overlay, for a build with Tag. The
// error matches ErrToolchain, or is that of a file or of the go command.
//
// With any overlay a function runtime.setBubbleDay, which a test reaches by go:linkname, sets the
// clock of the day of the bubble that calls it: times have monotonic readings from then on, as
// those of a process have, and the clock of the day may be set back and forth.
//
// With exact the overlay makes the Go runtime repeat itself inside a bubble of
// testing/synctest: which case of a select is taken when several can be, which of
// two timers rings first that are due at the same time, where the iteration of a map
// begins. Outside a bubble nothing changes. A test that runs in a bubble, on one P
// (GOMAXPROCS=1) and with the garbage collector off (which stops the world in the
// middle of things) does the same to the last bit whenever it runs.
//
// It is done by an overlay for the go command, which replaces some lines of package
// runtime for one build. The runtime is built for it anew, once, which takes the
// better part of a minute. Go has no promise about those lines: the error is
// ErrToolchain where they are not as this file knows them.
func WriteOverlay(dir string, exact bool) (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("replay: go env: %w", err)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	changes := days
	if exact {
		changes = slices.Concat(days, exactly)
	}
	replace := map[string]string{}
	for _, c := range changes {
		from := filepath.Join(strings.TrimSpace(string(root)), "src", c.file)
		to := filepath.Join(dir, strings.ReplaceAll(c.file, "/", "_"))
		read := from
		if replace[from] != "" {
			read = to
		}
		source, err := os.ReadFile(read)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(source), c.old); n != 1 {
			return "", fmt.Errorf("%w: %s has the place of %q %d times", ErrToolchain, c.file, c.why, n)
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
