package sharedfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/failover"
)

const (
	// keep is how many of the newest states stay. It bounds how late a view
	// of the directory may be.
	keep = 64
	// poll is how often Changed looks.
	poll = 5 * time.Millisecond
	// stale is how old a file without the name of a state must be before it is
	// taken for the remains of a process that was killed.
	stale = time.Hour

	statePrefix = "state."
	tempPrefix  = "new."
)

// Store is the failover.Store in a directory. Its methods may be called from any
// goroutine, and by any number of processes.
type Store struct {
	dir  string
	link func(oldname, newname string) error // os.Link
	sync func(*os.File) error                // of a file, or of the directory: (*os.File).Sync
}

var _ failover.Store = (*Store)(nil)

// New returns the arbiter of the guest whose record is in dir, as Open opens it. Every guest has a
// directory of its own.
func New(dir string) (*failover.StoreArbiter, error) {
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	return failover.NewStoreArbiter(s), nil
}

// Open returns the store in dir, which is made if it is not there. The directories above it are
// not made (fs.ErrNotExist): where the shared file system is not mounted, they would be on this
// host alone, and each host would have a record of its own. A directory that cannot be written,
// or in which link(2) is not what the store needs, is an error.
func Open(dir string) (*Store, error) { return openBy(dir, os.Link) }

// openBy is Open for a directory whose link(2) is link.
func openBy(dir string, link func(oldname, newname string) error) (*Store, error) {
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sharedfile: %w: mount what both hosts reach, or make what is above the directory there", err)
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	s := &Store{dir, link, (*os.File).Sync}
	// Find out now, and not in a failover, whether it can be used.
	if _, _, err := s.newest(); err != nil {
		return nil, err
	}
	if err := s.try(); err != nil {
		return nil, err
	}
	return s, nil
}

// try finds out whether the directory can be written as Swap writes it: it
// makes a file that is no state and as long as any, since a file system that is full takes
// one of no length, gives it a second name, and checks that link(2) refuses a name that is there.
func (s *Store) try() error {
	temp, err := s.write(make([]byte, failover.MaxRecord))
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("sharedfile: %w: there is no room for a record, so that no host could be granted the guest", err)
	}
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	named := temp + ".named"
	if err := s.name(temp, named); err != nil {
		return err
	}
	defer os.Remove(named)
	switch err := s.link(temp, named); {
	case err == nil:
		return fmt.Errorf("sharedfile: in %s link(2) replaces a name that is there", s.dir)
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	return s.syncDir()
}

// Load implements failover.Store.
func (s *Store) Load(ctx context.Context) (failover.Record, error) {
	for last := uint64(0); ; {
		if ctx.Err() != nil {
			return failover.Record{}, context.Cause(ctx)
		}
		n, _, err := s.newest()
		if err != nil || n == 0 {
			return failover.Record{}, err
		}
		r, err := s.read(n)
		if errors.Is(err, fs.ErrNotExist) && n != last {
			last = n
			continue // newer ones have come meanwhile, and this one was removed
		}
		return r, err
	}
}

// Swap implements failover.Store.
func (s *Store) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if next.Writes != old.Writes+1 {
		return false, fmt.Errorf("sharedfile: state %d does not follow state %d", next.Writes, old.Writes)
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if old.Writes > 0 {
		// The file of this number is old's, unless another record has the same number.
		if r, err := s.read(old.Writes); errors.Is(err, fs.ErrNotExist) || err == nil && r != old {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	temp, err := s.write(next.Encode())
	if err != nil {
		return false, err
	}
	defer os.Remove(temp)
	if err := s.name(temp, s.state(next.Writes)); errors.Is(err, fs.ErrExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := s.syncDir(); err != nil {
		return false, err
	}
	// The name was free because it was the next one, or because it was removed
	// long ago: this process was stopped since it loaded the record.
	newest, all, err := s.newest()
	switch {
	case err != nil:
		return false, err
	case newest > next.Writes && newest-next.Writes >= keep:
		return false, fmt.Errorf("sharedfile: state %d was written when state %d was there", next.Writes, newest)
	}
	s.tidy(newest, all)
	return true, nil
}

// Changed implements failover.Store.
func (s *Store) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		// To look for the next one is cheaper than to list all of them.
		_, err := os.Lstat(s.state(seen.Writes + 1))
		_, gone := os.Lstat(s.state(seen.Writes))
		if err == nil || seen.Writes > 0 && gone != nil {
			if r, err := s.Load(ctx); err != nil || r != seen {
				return r, err
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return failover.Record{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return failover.Record{}, context.Cause(ctx)
		}
	}
}

// name gives the file temp, which has one name, a second one.
func (s *Store) name(temp, name string) error {
	err := s.link(temp, name)
	if errors.Is(err, fs.ErrExist) && linked(temp) {
		// An NFS client may have sent the request twice and hear of the second one: this
		// process made the name if its own file has two.
		return nil
	}
	return err
}

func (s *Store) state(n uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s%020d", statePrefix, n))
}

// newest returns the number of the newest state, 0 if there is none, and the
// names of all files.
func (s *Store) newest() (n uint64, names []string, err error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return 0, nil, err
	}
	defer d.Close()
	if names, err = d.Readdirnames(0); err != nil {
		return 0, nil, err
	}
	for _, name := range names {
		if i, ok := number(name); ok {
			n = max(n, i)
		}
	}
	return n, names, nil
}

func number(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, statePrefix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

func (s *Store) read(n uint64) (failover.Record, error) {
	// Of a name that is no file, a pipe say, nobody waits for what may come of it.
	f, err := os.OpenFile(s.state(n), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return failover.Record{}, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return failover.Record{}, err
	} else if !fi.Mode().IsRegular() {
		return failover.Record{}, fmt.Errorf("%s: %w: it is no file, but %v", f.Name(), failover.ErrRecord, fi.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, failover.MaxRecord+1))
	if err != nil {
		return failover.Record{}, err
	}
	r, err := failover.DecodeRecord(b)
	if err == nil && r.Writes != n {
		err = fmt.Errorf("%w: state %d says that it is state %d", failover.ErrRecord, n, r.Writes)
	}
	if err != nil {
		return failover.Record{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return r, nil
}

// write makes a file that is on stable storage and is no state yet.
func (s *Store) write(b []byte) (name string, err error) {
	f, err := os.CreateTemp(s.dir, tempPrefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), s.sync(f), f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// syncDir makes the names in the directory stable.
func (s *Store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(d), d.Close())
}

// tidy removes states that are long over, and what killed processes left. What
// cannot be removed stays.
func (s *Store) tidy(newest uint64, names []string) {
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(s.dir, name)
		if n, ok := number(name); ok && newest-n >= keep {
			os.Remove(path)
		} else if strings.HasPrefix(name, tempPrefix) {
			if fi, err := os.Lstat(path); err == nil && time.Since(fi.ModTime()) > stale {
				os.Remove(path)
			}
		}
	}
}
