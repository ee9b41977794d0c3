package replication

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// metadataSuffix, after the name of an image, names the file with its metadata.
const metadataSuffix = ".lockstep"

// KeepMetadata says that the disk's metadata is in the file of that name, which
// is made when there is something to record. It is called before the disk is
// given to a Primary, a Secondary or a Journal. A file with the metadata of another image or device is refused by
// Metadata, which returns ErrIdentity, and is left as it is.
func (d *File) KeepMetadata(name string) error {
	d.metaMu.Lock()
	defer d.metaMu.Unlock()
	if d.meta != nil {
		return errors.New("replication: the metadata of " + d.f.Name() + " is in use")
	}
	d.metaName = name
	return nil
}

// Metadata implements [MetadataKeeper]: in the file that KeepMetadata named,
// or for a regular file, beside it. Elsewhere it is in memory. Where the file system does not answer for
// DefaultHungAfter, the error matches ErrHung; the image is to be closed and opened anew then, and stays locked until
// the file system has answered.
func (d *File) Metadata() (*Metadata, error) { return d.metadataBy(d.openMetadata) }

// metadataBy does what Metadata does, and calls open, once.
func (d *File) metadataBy(open func() (*Metadata, error)) (*Metadata, error) {
	d.metaMu.Lock()
	defer d.metaMu.Unlock()
	if d.meta != nil || d.metaErr != nil {
		return d.meta, d.metaErr
	}
	access := metadataAccess{image: d}
	var mu sync.Mutex
	var late bool
	var opened *Metadata
	m, err := usedBy(&access, "open", func() (*Metadata, error) {
		m, err := open()
		mu.Lock()
		defer mu.Unlock()
		if opened = m; late && m != nil {
			m.shut() // nobody waits for it any more
		}
		return m, err
	})
	if errors.Is(err, ErrHung) {
		d.metaErr = fmt.Errorf("%s: %w", d.f.Name(), err)
		mu.Lock()
		defer mu.Unlock()
		if late = true; opened != nil {
			opened.shut()
		}
		return nil, d.metaErr
	}
	d.meta = m
	return m, err
}

// openMetadata opens the metadata. It is called once at a time.
func (d *File) openMetadata() (*Metadata, error) {
	name, err := d.metadataName()
	if err != nil {
		return nil, err
	}
	if name == "" {
		return newMetadata(nil), nil
	}
	bound, err := birth(d.f)
	if err != nil {
		return nil, err
	}
	st, err := d.f.Stat()
	if err != nil {
		return nil, err
	}
	m, err := openMetadataFile(name, d.size.Load())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case boundTo(m.bound, bound, !st.Mode().IsRegular()):
	case d.metaName != "":
		err = fmt.Errorf("%w: the metadata in %s is that of another image than %s, and Rebind says that they belong together all the same", ErrIdentity, name, d.f.Name())
		return nil, errors.Join(err, m.close())
	default: // it belongs to an image that had this name before
		err = errors.Join(m.close(), os.ErrNotExist)
	}
	if err != nil {
		m = newMetadata(func() (*metadataDevice, error) { return createMetadataFile(name, d.size.Load()) })
	}
	if bound != [32]byte{} { // or the device has a name that cannot be asked for now
		m.bound = bound
	}
	m.access.image = d
	return m, nil
}

// boundTo reports whether metadata that was made for the image then is that of the image now; see birth. A device
// may have no name for good, or none that can be asked for.
func boundTo(then, now [32]byte, device bool) bool {
	return then == now || then == [32]byte{} || device && now == [32]byte{}
}

// metadataName returns the name of the file with the metadata, or "" if there is none.
func (d *File) metadataName() (string, error) {
	if d.metaName != "" {
		return d.metaName, nil
	}
	st, err := d.f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "", err
	}
	return metadataBeside(d.f.Name()), nil
}

// metadataBeside returns the name of the file with the metadata of an image. It is beside the image
// itself where name is that of a symbolic link, since an image with two names must not have two
// accounts. One that is beside the link alone was left there when the image was moved.
func metadataBeside(name string) string {
	beside := name + metadataSuffix
	image, err := filepath.EvalSymlinks(name)
	if err != nil {
		return beside
	}
	if _, err := os.Stat(image + metadataSuffix); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	return image + metadataSuffix
}

// Rebind says that the image and the file with its metadata belong together,
// though the image is not the file that it was: both were moved or restored. They may
// be older than what other copies know of them, so the account of what a secondary lacks is
// void, and so is what a primary knows of a copy that is inconsistent, if no [Journal] makes it clean before a Secondary has it:
// the next synchronisation compares or copies everything. It is called before anything else
// uses the metadata.
func (d *File) Rebind() error {
	d.metaMu.Lock()
	defer d.metaMu.Unlock()
	if d.meta != nil {
		return errors.New("replication: the metadata of " + d.f.Name() + " is in use")
	}
	name, err := d.metadataName()
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("replication: %s has no metadata", d.f.Name())
	}
	bound, err := birth(d.f)
	if err != nil {
		return err
	}
	m, err := openMetadataFile(name, d.size.Load())
	if err != nil {
		return err
	}
	err = m.change(func(f *facts) {
		f.bound = bound
		if f.peer.Copy != (ID{}) && f.peer.Generation == f.id.Generation {
			f.id.begin() // the guest goes on from there, without its secondary
		}
		switch {
		case f.id.State != CopyInconsistent:
		case f.guard == (ID{}):
			f.id.Copy = newID()
		default:
			f.restored = true
		}
		f.peer = peerBase{}
	})
	return errors.Join(err, m.shut())
}

// openMetadataFile opens the file for the metadata of an image of size bytes. One that is
// empty, since whoever made it did not get as far as its length, is os.ErrNotExist.
func openMetadataFile(name string, size int64) (*Metadata, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Size() == 0 {
		return nil, errors.Join(cmp.Or(err, os.ErrNotExist), f.Close())
	}
	d, err := NewFile(f)
	var m *Metadata
	if err == nil {
		m, err = OpenMetadata(d)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	reserve(f, d.Size()) // or the next change says that there is no room
	m.close = f.Close
	return m, nil
}

// createMetadataFile makes the file for the metadata of an image of size bytes, in the place of what is there. It
// gets all of its storage now: a file system that is full later must not keep a failover from being recorded.
func createMetadataFile(name string, size int64) (*metadataDevice, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	unlocked := func(*os.File) error { return nil } // the image is locked
	d, err := createFile(name, metadataHead+intentBytes(size), unlocked)
	if err != nil {
		return nil, err
	}
	if err := reserve(d.f, d.Size()); err != nil {
		return nil, errors.Join(err, d.f.Close())
	}
	return &metadataDevice{d, d.f.Close}, nil
}
