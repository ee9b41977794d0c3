package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestASavedGuestIsNotRemovedForAnErrorOfClose(t *testing.T) {
	name := filepath.Join(t.TempDir(), "guest")
	err := createFile(name, func(f *os.File) error {
		_, err := f.WriteString("the guest")
		return errors.Join(err, f.Close()) // which fails when it is closed again
	})
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "the guest" {
		t.Errorf("the file has %q, %v", got, err)
	}
}

func TestAGuestThatIsNotSavedLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "guest")
	broken := errors.New("no space left")
	err := createFile(name, func(f *os.File) error {
		_, err := f.WriteString("half a gue")
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}

func TestASavedGuestReplacesNoFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(name, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := createFile(name, func(*os.File) error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v", err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "another" {
		t.Errorf("the file has %q, %v", got, err)
	}
}
