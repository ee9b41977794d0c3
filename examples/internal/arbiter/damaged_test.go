package arbiter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A host that follows asks its arbiter when it is to take over, and would find out then.
func TestADamagedRecordIsToldOfWhenItsArbiterIsOpened(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"it is whole":       func(b []byte) []byte { return b },
		"it is cut off":     func(b []byte) []byte { return b[:20] },
		"it is empty":       func([]byte) []byte { return nil },
		"a bit has flipped": func(b []byte) []byte { b[strings.Index(string(b), "generation")] ^= 4; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var said []string
			open := func() failover.Arbiter {
				a, end, err := Open("file:"+dir, "guest", func(line string) { said = append(said, line) })
				if err != nil {
					t.Fatal(err)
				}
				end()
				return a
			}
			if _, err := open().Acquire(t.Context(), failover.Claim{Holder: "a", Token: "t", Term: time.Second}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "state.00000000000000000001")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			open()
			whole := name == "it is whole"
			if words := strings.Join(said, "; "); whole != (words == "") || !whole && !strings.Contains(words, file+": failover: not an arbiter's record") {
				t.Errorf("it was said %q", words)
			}
		})
	}
}
