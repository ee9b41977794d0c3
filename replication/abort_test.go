package replication

import "testing"

// closingDisk counts how often it is closed.
type closingDisk struct {
	*fakeDisk
	closed int
}

func (d *closingDisk) Close() error { d.closed++; return nil }

// abortingDisk has an Abort, after which it needs no Close.
type abortingDisk struct {
	closingDisk
	aborted int
}

func (d *abortingDisk) Abort() { d.aborted++ }

// However often a Remote of this package is aborted and closed, the disk below it is closed
// once, and never by Abort if that disk has an Abort of its own.
func TestWhatARemoteStandsOnIsClosedOnce(t *testing.T) {
	for name, over := range map[string]func(Disk) Remote{
		"a disk":      DiskRemote,
		"an identity": func(d Disk) Remote { return WithIdentity(DiskRemote(newFake(testSize, 0)), d) },
	} {
		plain := &closingDisk{fakeDisk: newFake(testSize, 0)}
		able := &abortingDisk{closingDisk: closingDisk{fakeDisk: newFake(testSize, 0)}}
		for _, d := range []Disk{plain, able} {
			r := over(d)
			r.(Aborter).Abort()
			r.(Aborter).Abort()
			if able.closed > 0 {
				t.Errorf("%s: Abort closes what can be aborted", name)
			}
			must(t, r.Close())
			must(t, r.Close())
			r.(Aborter).Abort()
		}
		if plain.closed != 1 || able.closed != 1 || able.aborted == 0 {
			t.Errorf("%s: closed %d and %d times, aborted %d", name, plain.closed, able.closed, able.aborted)
		}
	}
}
