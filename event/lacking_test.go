package event_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/event"
)

// An event that lacks all of its members is refused, or is encoded as one that can
// be read again.
func TestWhatLacksItsMembersCanBeReadAgain(t *testing.T) {
	names := event.Types()
	if len(names) < 40 {
		t.Fatalf("%d types", len(names))
	}
	for _, name := range names {
		for _, data := range []string{`,"data":{}`, ``} {
			line := fmt.Sprintf(`{"timestamp":{"seconds":1,"microseconds":2},"event":%q%s}`, name, data)
			r, err := event.Decode([]byte(line))
			if err != nil {
				continue
			}
			again, err := json.Marshal(r)
			if err != nil {
				t.Errorf("%s does not encode: %v", line, err)
				continue
			}
			r2, err := event.Decode(again)
			if err != nil {
				t.Errorf("%s is encoded as %s, which does not decode: %v", line, again, err)
				continue
			}
			if third, _ := json.Marshal(r2); string(third) != string(again) {
				t.Errorf("%s is encoded as %s, and then as %s", line, again, third)
			}
		}
	}
}
