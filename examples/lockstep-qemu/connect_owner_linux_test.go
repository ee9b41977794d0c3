package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// Who connects to them gives the standby another guest's memory and disks, or tells it that its guest has died.
func TestTheSocketsOfAStandbyAreForItsOwnerAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // no test runs beside one that is not parallel
	dir := qemutest.Dir(t)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "standby", "-json", "-listen", "unix:"+dir+"/s", "-control", "unix:"+dir+"/c", "-nbd", "unix:"+dir+"/n", "-insecure", "-disk", "d0="+disk, "-state", dir)
	for _, name := range []string{"s", "c", "n"} {
		st, err := os.Stat(filepath.Join(dir, name))
		for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
			st, err = os.Stat(filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	s.cancel()
	s.ends(exitInterrupted)
}
