package socket

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The place of a socket that nobody listens at any more is taken, and no other: an address
// that names an image by mistake costs nobody the image.
func TestListenReplacesTheSocketOfADeadProcessAndNothingElse(t *testing.T) {
	dir := Dir(t)
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if again, err := Listen("unix", dead); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
	if again, err := net.Listen("unix", dead); err != nil {
		t.Error(err)
	} else {
		if second, err := Listen("unix", dead); err == nil {
			second.Close()
			t.Error("the place of somebody who listens was taken")
		}
		again.Close()
	}
	image, empty := filepath.Join(dir, "image"), filepath.Join(dir, "empty")
	if err := os.WriteFile(image, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{image, empty} {
		if l, err := Listen("unix", path); err == nil {
			l.Close()
			t.Errorf("%s was replaced", path)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode()&os.ModeSocket != 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A kernel that is given no name chooses one itself, and somebody waits where nobody comes.
func TestASocketWithoutANameIsRefused(t *testing.T) {
	if l, err := Listen("unix", ""); err == nil {
		l.Close()
		t.Errorf("it listens at %v", l.Addr())
	} else if !strings.Contains(err.Error(), "the path of the socket is missing") {
		t.Error(err)
	}
}

// The directories of package testing have the test's name in theirs, which leaves a socket no
// room where the directory for what is temporary has a long name.
func TestADirectoryForSocketsIsShortWhateverTheNameOfTheTestIsAndGoesWithIt(t *testing.T) {
	above, err := os.MkdirTemp("", strings.Repeat("l", max(1, 50-len(os.TempDir()))))
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(above)
	var dir string
	t.Run("here", func(t *testing.T) {
		t.Setenv("TMPDIR", above)
		dir = Dir(t)
		l, err := net.Listen("unix", filepath.Join(dir, "with a name"))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s outlives its test: %v", dir, err)
	}
}
