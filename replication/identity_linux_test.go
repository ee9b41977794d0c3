package replication

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// A file system gives the inode number of an image that was removed to the next one that is made.
func TestAnImageWithTheInodeNumberOfARemovedOneIsAnother(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	inode := func() (number uint64, id [32]byte) {
		t.Helper()
		d, err := CreateFile(name, testSize)
		must(t, err)
		defer func() { must(t, d.Close()) }()
		st, err := os.Stat(name)
		must(t, err)
		id, err = birth(d.f)
		must(t, err)
		return st.Sys().(*syscall.Stat_t).Ino, id
	}
	for range 20 {
		before, old := inode()
		must(t, os.Remove(name))
		after, now := inode()
		if old == now {
			t.Fatal("they are taken for the same")
		}
		if before == after {
			return
		}
		must(t, os.Remove(name))
	}
	t.Log("this file system gives no inode number again") // and so tells them apart by it
}

// The time of a file's birth has the resolution of a tick of the kernel, in which several can be made.
func TestImagesOfOneMomentAreApart(t *testing.T) {
	dir := t.TempDir()
	seen := make(map[[32]byte]string)
	for i := range 30 {
		name := filepath.Join(dir, strconv.Itoa(i))
		f, err := os.Create(name)
		must(t, err)
		id, err := birth(f)
		must(t, err)
		must(t, f.Close())
		if other := seen[id]; other != "" {
			t.Fatalf("%s is taken for %s", name, other)
		}
		seen[id] = name
	}
}
