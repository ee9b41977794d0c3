package linuxguest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// someModules returns files of these names, which need each other as said.
func someModules(t *testing.T, needs map[string]string) *Modules {
	t.Helper()
	dir := t.TempDir()
	for name := range needs {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := FindModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.needs = func(path string) ([]string, error) {
		return strings.Fields(needs[strings.TrimSuffix(filepath.Base(path), ".ko")]), nil
	}
	return m
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	m := someModules(t, map[string]string{
		"virtio-net": "net_failover virtio", "net_failover": "failover", "failover": "", "virtio": "", "virtio_pci": "virtio", "other": "",
	})
	order, err := m.Order("virtio_pci", "built-in", "virtio_net")
	if err != nil {
		t.Fatal(err)
	}
	for i := range order {
		order[i] = strings.TrimSuffix(filepath.Base(order[i]), ".ko")
	}
	if got := strings.Join(order, " "); got != "virtio virtio_pci failover net_failover virtio-net" {
		t.Errorf("got %s", got)
	}
}

func TestModulesThatCannotBeLoadedAreErrors(t *testing.T) {
	for want, needs := range map[string]map[string]string{
		"module b, which a needs, is not there": {"a": "b"},
		"module a needs itself":                 {"a": "b", "b": "a"},
	} {
		if _, err := someModules(t, needs).Order("a"); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := FindModules(t.TempDir()); err == nil {
		t.Error("a directory without modules is none of a kernel")
	}
	if _, err := moduleNeeds("modules_test.go"); err == nil {
		t.Error("a text was taken for a module")
	}
}
