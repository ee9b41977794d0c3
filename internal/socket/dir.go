package socket

import "os"

// A test is testing.TB, without what a program would link with it.
type test interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
}

// Dir returns a new directory, which goes with the test, for its Unix sockets. Their names may
// have a hundred bytes, of which the test's own name takes most in the directories of package
// testing: too many where that of the directory for what is temporary is a long one, too.
func Dir(t test) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
