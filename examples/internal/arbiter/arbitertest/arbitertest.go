// Package arbitertest is for tests of what takes an -arbiter: their own binary is the
// program of a store:COMMAND.
package arbitertest

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/gocolo/lockstep/failover/program"
	"github.com/gocolo/lockstep/failover/sharedfile"
)

// variable names the directory of the record, where this binary is that program.
const variable = "LOCKSTEP_TEST_RECORD"

// Main is called first by TestMain. In the program that Command names it does not return.
func Main() {
	dir := os.Getenv(variable)
	if dir == "" {
		return
	}
	store, err := sharedfile.Open(dir)
	if err == nil {
		err = program.Serve(context.Background(), os.Stdin, os.Stdout, store)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Command returns the command of a program that keeps a record in a directory.
func Command(t testing.TB, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return "/usr/bin/env " + variable + "=" + dir + " " + self
}
