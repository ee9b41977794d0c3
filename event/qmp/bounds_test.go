package qmp_test

import (
	"strings"
	"testing"
	"testing/synctest"
)

func TestACommandIsAtMostAsLongAsItMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		s.MaxValue = 200
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		// Its tokens are the quoted strings and each sign between them; blanks do not count.
		command := func(n int) string {
			begin, end := `{"execute":"query-name","id":"`, `"}`
			return strings.Repeat(" ", 500) + begin + strings.Repeat("x", n-len(begin)-len(end)) + end
		}
		if a := say(t, conn, r, command(200)); !strings.Contains(a, `"id": "xxx`) || strings.Contains(a, "error") {
			t.Errorf("as long as it may be: %s", a)
		}
		if a := say(t, conn, r, command(201)); !strings.Contains(a, "size limit exceeded") {
			t.Errorf("a byte more: %s", a)
		}
	})
}
