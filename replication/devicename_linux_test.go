package replication

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// sysfs has block devices, as the system describes them.
type sysfs struct {
	t   *testing.T
	dir string
}

// add adds a device, or a partition of one, with what its files say.
func (s sysfs) add(number, path string, files map[string]string) {
	s.t.Helper()
	dir := filepath.Join(s.dir, "devices", path)
	must(s.t, os.MkdirAll(filepath.Join(s.dir, "block"), 0o755))
	must(s.t, os.MkdirAll(dir, 0o755))
	for name, said := range files {
		must(s.t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(s.t, os.WriteFile(filepath.Join(dir, name), []byte(said), 0o644))
	}
	must(s.t, os.Symlink(dir, filepath.Join(s.dir, "block", number)))
}

func TestABlockDeviceIsTheSameAfterTheSystemHasStartedAnew(t *testing.T) {
	started := func(sda, sdb string) sysfs {
		s := sysfs{t, t.TempDir()}
		s.add("8:0", "sda", map[string]string{"device/wwid": sda + "\n"})
		s.add("8:1", "sda/sda1", map[string]string{"partition": "1\n"})
		s.add("8:2", "sda/sda2", map[string]string{"partition": "2\n"})
		s.add("8:16", "sdb", map[string]string{"device/wwid": sdb + "\n"})
		s.add("253:0", "dm-0", map[string]string{"dm/uuid": "LVM-one\n"})
		s.add("7:0", "loop0", map[string]string{"size": "8\n"})
		return s
	}
	name := func(s sysfs, major, minor uint32) [32]byte {
		return deviceName(filepath.Join(s.dir, "block"), major, minor)
	}
	before, after := started("naa.1", "naa.2"), started("naa.2", "naa.1") // the disks are found in another order
	if name(before, 8, 0) != name(after, 8, 16) || name(before, 8, 16) != name(after, 8, 0) {
		t.Error("a disk that has another number is taken for another")
	}
	seen := make(map[[32]byte]string)
	for _, d := range [][2]uint32{{8, 0}, {8, 1}, {8, 2}, {8, 16}, {253, 0}} {
		id, which := name(before, d[0], d[1]), fmt.Sprint(d)
		if other := seen[id]; other != "" || id == [32]byte{} {
			t.Errorf("device %v is taken for %q", d, other)
		}
		seen[id] = which
	}
	for _, d := range [][2]uint32{{7, 0}, {9, 9}} {
		if id := name(before, d[0], d[1]); id != [32]byte{} {
			t.Errorf("device %v, which has no name for good, is %x", d, id)
		}
	}
}

// The file of a device is made anew at each start of the system.
func TestABlockDeviceIsNotToldByItsFile(t *testing.T) {
	names, _ := filepath.Glob("/dev/loop[0-9]")
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		id, err := birth(f)
		must(t, err)
		if want := deviceName("/sys/dev/block", unix.Major(st.Rdev), unix.Minor(st.Rdev)); id != want {
			t.Errorf("%s is %x, and its device %x", name, id, want)
		}
		return
	}
	t.Skip("no block device can be opened here")
}

// The disks of a guest are named in another order, or the files beside them were exchanged.
func TestMetadataThatIsNamedIsNotTakenForThatOfAnotherImage(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	open := func(image, meta string) (*File, *Metadata, error) {
		t.Helper()
		d, err := CreateFile(at(image), testSize)
		must(t, err)
		t.Cleanup(func() { d.Close() })
		must(t, d.KeepMetadata(at(meta)))
		m, err := d.Metadata()
		return d, m, err
	}
	for _, name := range []string{"a", "b"} {
		d, m, err := open(name, name+".meta")
		must(t, err)
		must(t, m.Hold(7))
		must(t, d.Close())
	}
	content, err := os.ReadFile(at("b.meta"))
	must(t, err)
	d, _, err := open("a", "b.meta")
	wantErr(t, "the metadata of another image", err, ErrIdentity)
	must(t, d.Close())
	now, err := os.ReadFile(at("b.meta"))
	must(t, err)
	wantBytes(t, "it has been left as it was", now, content, 0)
	d, err = OpenFile(at("a"))
	must(t, err)
	must(t, d.KeepMetadata(at("b.meta")))
	must(t, d.Rebind()) // somebody says that it is right
	m, err := d.Metadata()
	must(t, err)
	if m.Held() != 7 {
		t.Errorf("it holds %d", m.Held())
	}
	must(t, d.Close())
}

// A device whose name was known, and is not now, such as in a container without sysfs, is not taken for another.
func TestADeviceWithoutANameKeepsItsMetadata(t *testing.T) {
	for _, c := range []struct {
		then, now [32]byte
		device    bool
		is        bool
	}{
		{[32]byte{1}, [32]byte{1}, false, true},
		{[32]byte{1}, [32]byte{2}, false, false},
		{[32]byte{}, [32]byte{2}, false, true},
		{[32]byte{1}, [32]byte{}, false, false},
		{[32]byte{1}, [32]byte{2}, true, false},
		{[32]byte{1}, [32]byte{}, true, true},
	} {
		if is := boundTo(c.then, c.now, c.device); is != c.is {
			t.Errorf("metadata of %x, and an image %x, device %v: %v", c.then[0], c.now[0], c.device, is)
		}
	}
}
