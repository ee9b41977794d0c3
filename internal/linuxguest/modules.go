package linuxguest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Modules finds kernel modules, and what they need, among those of a kernel
// package that was unpacked and not installed, so that there is no index of
// them.
type Modules struct {
	files map[string]string                   // by name, with _ for -
	needs func(path string) ([]string, error) // the function moduleNeeds, or a test's
}

// FindModules looks for the modules below dir (lib/modules/VERSION).
func FindModules(dir string) (*Modules, error) {
	m := &Modules{files: make(map[string]string), needs: moduleNeeds}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			m.files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	if err == nil && len(m.files) == 0 {
		err = fmt.Errorf("no modules (*.ko) in %s", dir)
	}
	return m, err
}

// Order returns the files of the named modules and of those that they need, in
// an order in which they can be loaded. A name without a file is left out:
// kernels differ in what they have built in.
func (m *Modules) Order(names ...string) ([]string, error) {
	var order []string
	var add func(name string, from []string) error
	add = func(name string, from []string) error {
		name = strings.ReplaceAll(name, "-", "_")
		path, ok := m.files[name]
		switch {
		case !ok && len(from) == 0:
			return nil // built in
		case !ok:
			return fmt.Errorf("module %s, which %s needs, is not there", name, from[len(from)-1])
		case slices.Contains(order, path):
			return nil
		case slices.Contains(from, name):
			return fmt.Errorf("module %s needs itself", name)
		}
		needs, err := m.needs(path)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := add(n, append(from, name)); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, n := range names {
		if err := add(n, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleNeeds reads the dependencies in a module's .modinfo section.
func moduleNeeds(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s has no .modinfo", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
