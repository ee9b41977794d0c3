package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

func TestAHostWithoutKVMIsToldWhatToDo(t *testing.T) {
	for words, err := range map[string]error{
		"put it into the group":      &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrPermission},
		"load kvm_intel or kvm_amd,": &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrNotExist},
		"it is too old":              errors.New("it is too old"),
	} {
		if said := cannotRun(err); !errors.Is(said, err) || !strings.Contains(said.Error(), words) {
			t.Errorf("%v: %v", err, said)
		}
	}
	if err := cannotRun(nil); err != nil {
		t.Error(err)
	}
}
