package ram_test

import (
	"errors"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A log of written pages, and memory that comes later, are given up without a descriptor left where the
// process has too few of them.
func TestTrackersAndLazyMemoryLeaveNoDescriptorWhereThereAreTooFew(t *testing.T) {
	mem, err := mapping.New(8 * ram.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer mapping.Free(mem)
	blocks := []ram.Block{{Name: "a", Host: mem[:4*ram.PageSize]}, {Name: "b", Host: mem[4*ram.PageSize:]}}
	require.Usable(t, require.Userfaultfd, func() error {
		l, err := ram.NewTracker(blocks)
		if err != nil {
			return err
		}
		return l.Close()
	})
	for name, call := range map[string]func() error{
		"NewTracker": func() error {
			l, err := ram.NewTracker(blocks)
			if err != nil {
				return err
			}
			return errors.Join(l.StartDirtyLog(), l.Close())
		},
		"Lazy.Listen": func() error {
			l, err := ram.NewLazy(blocks)
			if err != nil {
				return err
			}
			return errors.Join(l.Listen(), l.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			if n := leaks.Starve(t, call); n == 0 {
				t.Error("it needs no descriptor")
			}
		})
	}
}

// The second of two blocks is larger than what the kernel promises.
func TestACacheThatCannotBeMadeGivesBackTheMemoryOfTheBlocksBefore(t *testing.T) {
	const first, second = 2 * leaks.LargeBytes, 1 << (strconv.IntSize/2 + 8)
	mem, err := unix.Mmap(-1, 0, first+second, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Munmap(mem)
	blocks := []ram.Block{{Name: "a", Host: mem[:first]}, {Name: "b", Host: mem[first:]}}
	before := leaks.Now(t)
	c, err := ram.NewCache(blocks, nil, ram.CacheConfig{})
	if err == nil {
		c.Close()
		t.Skip("the kernel promises whatever it is asked for")
	}
	before.Check(t, "a cache that could not be made")
}
