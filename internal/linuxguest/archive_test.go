package linuxguest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unpack reads an archive as a kernel does, by the lengths in it, and returns a
// line for each entry.
func unpack(t *testing.T, b []byte) []string {
	t.Helper()
	var lines []string
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			t.Fatalf("no header at %.20q", b)
		}
		field := func(i int) (n int) {
			if _, err := fmt.Sscanf(string(b[6+8*i:][:8]), "%x", &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		mode, size, name := field(1), field(6), field(11)
		major, minor := field(9), field(10)
		text := string(b[110 : 110+name-1])
		b = b[(110+name+3)&^3:]
		if text == "TRAILER!!!" {
			if len(b) != 0 {
				t.Errorf("%d bytes behind the trailer", len(b))
			}
			return lines
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%o %s %d:%d %s", mode, text, major, minor, b[:size])))
		b = b[(size+3)&^3:]
	}
}

func TestAnArchiveUnpacksToWhatWasPutIn(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	if err := os.WriteFile(from, []byte("copied"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := NewArchive(&b)
	a.Console()
	a.File("init", []byte("12345"))
	a.Copy("a/b/c", from)
	a.Dir("a")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	want := `40755 dev 0:0
20600 dev/console 5:1
100755 init 0:0 12345
40755 a 0:0
40755 a/b 0:0
100755 a/b/c 0:0 copied`
	if got := strings.Join(unpack(t, b.Bytes()), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAnArchiveRemembersItsFirstError(t *testing.T) {
	a := NewArchive(new(bytes.Buffer))
	a.Copy("x", filepath.Join(t.TempDir(), "missing"))
	a.File("y", nil)
	if err := a.Close(); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}
