package replication

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

// loopDevice returns the name of a block device of size bytes with sectors of
// 4096 bytes.
func loopDevice(t *testing.T, size int) string {
	t.Helper()
	return loopDeviceIn(t, t.TempDir(), size)
}

// loopDeviceIn does what loopDevice does, with the device's content in a file in dir.
func loopDeviceIn(t *testing.T, dir string, size int) string {
	t.Helper()
	losetup := require.Program(t, "loop", "losetup")
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, bytes.Repeat([]byte{0x5a}, size), 0o600))
	out, err := exec.Command(losetup, "-b", "4096", "-f", "--show", image).CombinedOutput()
	if err != nil {
		require.Missing(t, "loop", fmt.Errorf("losetup: %w: %s", err, out))
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command(losetup, "-d", device).Run() })
	setReadOnly(t, device, 0) // as whoever had its number before may not have left it
	return device
}

func TestZeroesSmallerThanASectorOfTheDeviceAreWritten(t *testing.T) {
	const size = 1 << 20
	d, err := OpenFile(loopDevice(t, size))
	must(t, err)
	defer d.Close()
	want := bytes.Repeat([]byte{0x5a}, size)
	for _, tc := range []struct {
		off, n int64
		do     func(off, n int64) error
	}{
		{512, 512, d.WriteZeroes}, {8192, 4096, d.WriteZeroes}, {20480 - 512, 3*4096 + 1024, d.WriteZeroes}, {size - 512, 512, d.WriteZeroes},
		{65536 + 512, 512, d.Trim}, {131072 + 512, 65536, d.Trim},
	} {
		if err := tc.do(tc.off, tc.n); err != nil {
			t.Errorf("%d bytes at %d: %v", tc.n, tc.off, err)
		}
		clear(want[tc.off:][:tc.n])
	}
	got := make([]byte, size)
	must(t, readFull(d, got, 0))
	if !bytes.Equal(got, want) {
		t.Error("zeroes are not where they should be, and only there")
	}
	if got := extents(t, d, 0, size); len(got) != 1 || got[0] != (extent{size, 0}) {
		t.Errorf("extents of a device %v, want all data", got)
	}
}

// A file system that keeps its files in memory alone, as ramfs does, gives no storage back, and so
// neither does a device over it. The kernel says that only of ranges that are whole sectors of the
// device.
func TestZeroesAreWrittenToADeviceOfLargeSectorsThatGivesNoStorageBack(t *testing.T) {
	mount, dir := require.Program(t, "loop", "mount"), t.TempDir()
	if out, err := exec.Command(mount, "-t", "ramfs", "none", dir).CombinedOutput(); err != nil {
		require.Missing(t, "loop", fmt.Errorf("mount: %w: %s", err, out))
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) }) // when the device is gone, or is about to go
	const size = 1 << 20
	d, err := OpenFile(loopDeviceIn(t, dir, size))
	must(t, err)
	t.Cleanup(func() { d.Close() }) // before the device goes
	if err := punchHole(d.f, 0, 4096); !errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("the device gives storage back: %v", err)
	}
	want := bytes.Repeat([]byte{0x5a}, size)
	for _, at := range [][2]int64{{0, 4096}, {8192, 512}, {16384 + 512, 16384}, {65536, 8192 + 512}} {
		must(t, d.WriteZeroes(at[0], at[1]))
		clear(want[at[0]:][:at[1]])
	}
	must(t, d.Trim(131072, 8192))
	must(t, d.Trim(131072+512, 16384))
	got := make([]byte, size)
	must(t, readFull(d, got, 0))
	if !bytes.Equal(got, want) {
		t.Error("zeroes are not where they should be, and only there")
	}
}

// A descriptor that takes only some requests is refused before there is a guest that could
// meet its errors: opened with O_DIRECT, a device of larger sectors returns EINVAL for a write
// of one sector of the guest.
func TestAFileThatTakesOnlySomeRequestsIsNoDisk(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
	names := map[string]func(*testing.T) string{
		"file":   func(*testing.T) string { return image },
		"device": func(t *testing.T) string { return loopDevice(t, 1<<20) },
	}
	for what, name := range names {
		for flag, word := range map[int]string{unix.O_DIRECT: "O_DIRECT", unix.O_APPEND: "O_APPEND", unix.O_SYNC: ""} {
			t.Run(what+" "+word, func(t *testing.T) {
				f, err := os.OpenFile(name(t), os.O_RDWR|flag, 0)
				if errors.Is(err, unix.EINVAL) && word == "O_DIRECT" {
					t.Skip("the file system has no", word)
				}
				must(t, err)
				defer f.Close()
				_, err = NewFile(f)
				if word == "" {
					must(t, err)
				} else if wantErr(t, word, err, errors.ErrUnsupported); !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not name the flag", err)
				}
			})
		}
	}
}

// setReadOnly says of a block device whether it is read-only, 1, or not, 0.
func setReadOnly(t *testing.T, device string, is int) {
	t.Helper()
	f, err := os.Open(device)
	must(t, err)
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, is)
	must(t, errors.Join(err, f.Close()))
}

// A file that is open for reading only says so, and root is told of a device that is read-only,
// which it may open for writing.
func TestAFileOrDeviceThatIsReadOnlyIsRefusedBeforeItIsWritten(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(name, make([]byte, minJournal), 0o600))
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	refused := func(t *testing.T, d *File) {
		for what, use := range uses(d, newFake(minJournal, 0)) {
			wantErr(t, what, use(), unix.EROFS)
		}
	}
	t.Run("file", func(t *testing.T) {
		d, err := NewFile(f)
		must(t, err)
		refused(t, d)
		d, err = OpenFile(name)
		must(t, err)
		defer d.Close()
		must(t, CheckDisk(d))
	})
	t.Run("device", func(t *testing.T) {
		device := loopDevice(t, minJournal)
		d, err := OpenFile(device)
		must(t, err)
		must(t, CheckDisk(d))
		must(t, d.Close())
		setReadOnly(t, device, 1)
		defer setReadOnly(t, device, 0)
		if d, err = OpenFile(device); err != nil { // the driver refuses it
			wantErr(t, "a device that is read-only", err, unix.EROFS)
			return
		}
		defer d.Close()
		refused(t, d)
	})
}

// Nobody is told that what keeps its identity elsewhere is of no known disk.
func TestTheIdentityOfADeviceIsNotSaidToBeUnknown(t *testing.T) {
	for _, name := range []string{os.DevNull, os.TempDir()} {
		if i, err := ReadIdentity(name); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, %v", name, i, err)
		}
	}
}
