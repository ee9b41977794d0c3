package socket

import "os"

// A test is testing.TB, without what a program would link with it.
type test interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
}

// Dir returns a new directory for the Unix sockets of a test; it is removed when the test
// ends. The name of a socket may have only some hundred bytes. In a directory of package
// testing the name of the test takes most of them: too many if the name of the directory for
// temporary files is long too.
func Dir(t test) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
