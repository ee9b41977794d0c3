package colo_test

import (
	"os"
	"strings"
	"testing"
)

func TestTheProgramInTheREADMEIsTheExample(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(readme), "```go\n")
	program, _, _ = strings.Cut(program, "\n}\n```")
	program = strings.ReplaceAll(program, "    ", "\t")
	if program == "" || !strings.Contains(string(example), program) {
		t.Error("the program in the README is not that of example_test.go")
	}
}
