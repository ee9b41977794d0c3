package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestADomainBecomesACommandLine(t *testing.T) {
	for _, name := range []string{"pc", "q35"} {
		p := start(t, "check", "-domain", "testdata/domain-"+name+".xml")
		p.ends(exitOK)
		golden := "testdata/domain-" + name + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(p.output()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || p.output() != string(want) {
			t.Errorf("%s: %v: it says\n%s", name, err, p.output())
		}
	}
}

// domain reads one of the XML files, with another directory for its files.
func domain(t *testing.T, name, dir string) *element {
	t.Helper()
	text, err := os.ReadFile("testdata/domain-" + name + ".xml")
	if err != nil {
		t.Fatal(err)
	}
	d, err := readDomain(bytes.NewReader(bytes.ReplaceAll(text, []byte("/there"), []byte(dir))))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The command line of a domain starts, and takes the guest of another that was started
// with it.
func TestADomainsCommandLineTakesItsGuest(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	var lines [2][]string
	var dirs [2]string
	for i := range dirs {
		dirs[i] = qemutest.Dir(t)
		qemutest.GuestArgs(t, dirs[i], "pc", 32) // the firmware
		emptyDisk(t, dirs[i], "disk")
		lines[i], _ = translateDomain(domain(t, "pc", dirs[i]))
	}
	state := qemutest.Dir(t)
	s := start(t, slices.Concat([]string{"standby", "-json", "-rehearse", "-listen", "127.0.0.1:0", "-state", state, "--"}, lines[1])...)
	v := qemutest.Start(t, dirs[0], lines[0][1:]...)
	seen := qemutest.AwaitSerial(t, dirs[0], 2)
	v.Protect(s.text("listening"), 20*time.Millisecond)
	if r := s.rehearsal(0); !r.Fits {
		t.Errorf("%+v", r)
	}
	s.checkpoints(3)
	v.Kill()
	s.object("back", 0)
	counts(t, dirs[1], seen[1])
	qemutest.Monitor(t, filepath.Join(state, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

// Nothing of a domain is dropped: what is not understood is named, wherever it is.
func TestWhatIsNotUnderstoodOfADomainIsNamed(t *testing.T) {
	// What is in whole elements is not asked for: a console that is the serial line, and
	// where a device is that the machine has by itself.
	var walk func(e *element, whole bool, visit func(e *element, whole bool))
	walk = func(e *element, whole bool, visit func(*element, bool)) {
		whole = whole || e.name == "console" || e.name == "alias" || e.name == "address"
		visit(e, whole)
		for _, k := range e.kids {
			walk(k, whole, visit)
		}
	}
	n := 0
	walk(domain(t, "pc", "/there"), false, func(*element, bool) { n++ })
	for i := range n {
		d := domain(t, "pc", "/there")
		var at *element
		passed, left := false, i
		walk(d, false, func(e *element, whole bool) {
			if left == 0 {
				at, passed = e, whole
			}
			left--
		})
		at.kids = append(at.kids, &element{name: "unheard-of"})
		_, notes := translateDomain(d)
		if named := strings.Contains(strings.Join(notes, "\n"), "/unheard-of"); !named && !passed {
			t.Errorf("in %s of line %d it is not named: %q", at.name, at.line, notes)
		}
	}
}

func TestWhatIsNoDomainIsRefused(t *testing.T) {
	deep := strings.Repeat("<a>", maxDomainDepth+1)
	for name, text := range map[string]string{
		"nothing":       "",
		"another":       "<network/>",
		"two":           "<domain/><domain/>",
		"cut off":       "<domain><name>",
		"an entity":     "<!DOCTYPE d [<!ENTITY a \"aaaa\">]><domain><name>&a;</name></domain>",
		"too deep":      "<domain>" + deep,
		"too many":      "<domain>" + strings.Repeat("<a/>", maxDomainElements),
		"too large":     "<domain>" + strings.Repeat(" ", maxDomain),
		"a long space":  "<domain xmlns='" + strings.Repeat("a", maxNameSpace+1) + "'/>",
		"too much text": "<domain><name>" + strings.Repeat("a", maxDomain) + "</name></domain>",
	} {
		if d, err := readDomain(strings.NewReader(text)); !errors.Is(err, errDomain) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

// A text that comes in many pieces costs in proportion to its length: four times as much
// has four times the cost, and not sixteen. Not parallel, since it counts what is
// allocated.
func TestATextInPiecesIsReadInProportionToItsLength(t *testing.T) {
	allocated := func(pieces int) uint64 {
		text := "<domain><name>" + strings.Repeat("a<!---->", pieces) + "</name></domain>"
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d, err := readDomain(strings.NewReader(text))
		runtime.ReadMemStats(&after)
		if err != nil || len(d.one("name").words()) != pieces {
			t.Fatalf("%v", err)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	allocated(1)
	few, many := allocated(1<<13), allocated(1<<15)
	if many > 8*few {
		t.Errorf("%d bytes for %d pieces, %d for %d", few, 1<<13, many, 1<<15)
	}
}

func FuzzADomainIsTranslatedWhateverItHas(f *testing.F) {
	for _, name := range []string{"pc", "q35"} {
		text, err := os.ReadFile("testdata/domain-" + name + ".xml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := readDomain(bytes.NewReader(text))
		if err != nil {
			if !errors.Is(err, errDomain) {
				t.Error(err)
			}
			return
		}
		if args, _ := translateDomain(d); len(args) < 2 {
			t.Errorf("%q", args)
		}
	})
}
