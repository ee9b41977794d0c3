package protect

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadTLSNamesTheFilesThatAreWrong(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key")
	if _, err := LoadTLS(cert, key, "ca.pem"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "protect: certificate "+cert) {
		t.Errorf("there is no file: %v", err)
	}
	for _, name := range []string{cert, key} {
		if err := os.WriteFile(name, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := LoadTLS(cert, key, "ca.pem"); err == nil || !strings.Contains(err.Error(), "key "+key) {
		t.Errorf("the files have no certificate: %v", err)
	}
}
