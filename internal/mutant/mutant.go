// Package mutant plants faults in the source of this module, for tests that want to know
// whether other tests find them. The source itself is left alone: the go command is
// given a file in the place of another by its flag -overlay.
package mutant

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Mutant is a fault: a text that a file of the source has once, and what stands there
// instead.
type Mutant struct {
	What     string // what is wrong with the code once it is planted
	File     string // from the directory that Test and Check are given
	Old, New string
	Tests    []string // arguments of go test, where others than those of the list find it
	Overlay  string   // the path of an overlay by which the tests are built besides; "": none
}

// ErrStale says that the source has changed, so that a mutant has to be brought up to date.
var ErrStale = errors.New("mutant: the file does not have the text once")

// Check returns nil if the mutant can be planted in the source below dir, and otherwise
// ErrStale or why its file cannot be read.
func (m Mutant) Check(dir string) error {
	_, err := m.source(dir)
	return err
}

// source returns the file with the fault in it.
func (m Mutant) source(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, m.File))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(b), m.Old); n != 1 || m.Old == m.New {
		return "", fmt.Errorf("%w: %s: %s, %d times: %q", ErrStale, m.What, m.File, n, m.Old)
	}
	return strings.Replace(string(b), m.Old, m.New, 1), nil
}

// Test runs go test in the present directory with the fault planted in the source below
// dir. Its arguments are args, or Tests where there are some. It returns what go test has
// printed, and its error, by which the tests have failed or did not compile.
func (m Mutant) Test(dir string, args ...string) ([]byte, error) {
	text, err := m.source(dir)
	if err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	path, err := filepath.Abs(filepath.Join(dir, m.File))
	if err != nil {
		return nil, err
	}
	instead, overlay := filepath.Join(scratch, filepath.Base(m.File)), filepath.Join(scratch, "overlay.json")
	var files struct{ Replace map[string]string }
	if m.Overlay != "" {
		b, err := os.ReadFile(m.Overlay)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &files); err != nil {
			return nil, fmt.Errorf("mutant: %s: %w", m.Overlay, err)
		}
	}
	if files.Replace == nil {
		files.Replace = map[string]string{}
	}
	files.Replace[path] = instead
	table, err := json.Marshal(files)
	if err == nil {
		err = errors.Join(os.WriteFile(instead, []byte(text), 0o600), os.WriteFile(overlay, table, 0o600))
	}
	if err != nil {
		return nil, err
	}
	if len(m.Tests) > 0 {
		args = m.Tests
	}
	return exec.Command("go", append([]string{"test", "-count=1", "-vet=off", "-failfast", "-overlay=" + overlay}, args...)...).CombinedOutput()
}
