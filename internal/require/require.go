// Package require decides what a test does when something outside the Go
// toolchain is missing: skip with the reason, or fail where the environment
// variable LOCKSTEP_REQUIRE (a comma-separated list) names it. With -short nothing
// outside is used, unless LOCKSTEP_REQUIRE names it.
package require

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// TB is the part of testing.TB that this package uses; non-test code that
// imports it does not link package testing.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Names that LOCKSTEP_REQUIRE may list.
const (
	KVM       = "kvm"       // /dev/kvm can create a VM
	QEMU      = "qemu"      // qemu-system-x86_64 and the qemu-utils tools
	NetNS     = "netns"     // network namespaces can be made (root, iproute2)
	NBD       = "nbd"       // nbdcopy, nbdinfo and nbdkit
	Assembler = "assembler" // GNU as and ld for x86-64
	Processes = "processes" // child processes of the test, which are never missing

	// Cases stands for all cases of a test that has many, instead of a sample (see
	// Sampled). It is no tool and never missing.
	Cases = "cases"

	// SmallPages: Linux with pages of 4 KiB, which a cache without a copy gives back to it.
	SmallPages = "smallpages"

	// Userfaultfd: Linux 6.7, and leave to open one (root).
	Userfaultfd = "userfaultfd"
)

// Wanted reports whether LOCKSTEP_REQUIRE names what.
func Wanted(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("LOCKSTEP_REQUIRE"), ","), what)
}

// Sampled reports whether a test that has many cases of a kind, each with a process or a
// machine of its own, runs a sample of them: with -short, and without it unless
// LOCKSTEP_REQUIRE names Cases.
func Sampled() bool { return short() || !Wanted(Cases) }

// Sample skips all but every n-th case of such a test, where i is which of them this is.
func Sample(t TB, i, n int) {
	t.Helper()
	if i%n != 0 && Sampled() {
		t.Skipf("one case in %d: for all, name %s in LOCKSTEP_REQUIRE and leave -short out", n, Cases)
	}
}

// Many is how many cases such a test has, or of how many it runs one: few with -short, all
// where LOCKSTEP_REQUIRE names Cases, and some otherwise.
func Many[T any](few, some, all T) T {
	switch {
	case short():
		return few
	case Wanted(Cases):
		return all
	}
	return some
}

// Parallel has up to n tests of a package run in parallel, however few CPUs there are, if
// -parallel gives no number: it is for tests that wait most of the time. TestMain calls it,
// before the flags are parsed.
func Parallel(n int) error { return flag.Set("test.parallel", strconv.Itoa(n)) }

// SeldomCollect has the garbage of a package's tests collected a quarter as often, if GOGC
// gives no percentage. It is for tests that make many small worlds, one after the other: with
// a heap of a few megabytes a collection comes with nearly each of them. TestMain calls it,
// and it parses the flags: a benchmark's figure is that of a program that collects as usual.
func SeldomCollect() {
	flag.Parse()
	if os.Getenv("GOGC") == "" && flag.Lookup("test.bench").Value.String() == "" {
		debug.SetGCPercent(400)
	}
}

// Missing skips the test because what is not there, or fails it if
// LOCKSTEP_REQUIRE names what. It does not return.
func Missing(t TB, what string, why error) {
	t.Helper()
	if Wanted(what) {
		t.Fatalf("%s is required but missing: %v", what, why)
	}
	t.Skipf("needs %s: %v", what, why)
}

// Granted calls Missing if err says that the kernel has no such thing, or has none for this
// process. Any other error fails the test.
func Granted(t TB, what string, err error) {
	t.Helper()
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		Missing(t, what, err)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Outside skips the test with -short, because it uses what, unless LOCKSTEP_REQUIRE
// names that. Program and Usable call it.
func Outside(t TB, what string) {
	t.Helper()
	if !Allowed(what) {
		t.Skipf("-short uses no %s", what)
	}
}

// Allowed reports whether Outside lets a test go on, once the flags are parsed.
func Allowed(what string) bool {
	return !short() || Wanted(what)
}

// short is testing.Short without package testing.
func short() bool {
	f := flag.Lookup("test.short")
	return f != nil && f.Value.String() == "true"
}

// Usable calls Missing if probe returns an error.
func Usable(t TB, what string, probe func() error) {
	t.Helper()
	Outside(t, what)
	if err := probe(); err != nil {
		Missing(t, what, err)
	}
}

// Program returns the path of an executable that belongs to what, or calls
// Missing.
func Program(t TB, what, name string) string {
	t.Helper()
	Outside(t, what)
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, what, err)
	}
	return path
}
