package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// unstable is a disk of zeroes whose flushes fail once fails is set.
type unstable struct {
	silent
	fails atomic.Bool
}

var errUnstable = errors.New("no flush")

func (d *unstable) Sync() error {
	if d.fails.Load() {
		return errUnstable
	}
	return nil
}

// refuseStart passes on the lines of a primary that comes to the path from, but, if refuse is set, for "start", which it refuses.
func refuseStart(t *testing.T, from, to string, refuse bool) {
	t.Helper()
	between(t, from, func(ln net.Listener, _ *sync.WaitGroup) {
		near, err := ln.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("unix", to)
		if err != nil {
			return
		}
		defer far.Close()
		answers := bufio.NewScanner(far)
		for lines := bufio.NewScanner(near); lines.Scan(); {
			if refuse && lines.Text() == "start" {
				fmt.Fprintln(near, "error not today")
				continue
			}
			fmt.Fprintln(far, lines.Text())
			if !answers.Scan() {
				return
			}
			fmt.Fprintln(near, answers.Text())
		}
	})
}

// Behind a Mark what the guest writes is held, and beyond a bound the guest waits, until the checkpoint is loaded or
// the primary has given the secondary up.
func TestAGuestsWritesAreNotHeldForACheckpointThatIsNotMade(t *testing.T) {
	for _, what := range []string{"the local disk fails", "the secondary does not start"} {
		t.Run(what, func(t *testing.T) {
			dir := socket.Dir(t)
			path := func(name string) string { return filepath.Join(dir, name) }
			startSecondary(t, path("b"), newSilent(), replication.SecondaryConfig{})
			passOn(t, path("c"), path("b"), -1, 0)
			refuseStart(t, path("c.control"), path("b.control"), what != "the local disk fails")
			p := &primary{printer: &printer{out: t.Output()}, o: options{secondary: path("c")}}
			disk := new(unstable)
			var err error
			if p.disk, err = replication.NewPrimary(disk, replication.PrimaryConfig{Name: diskName, Overwrite: true}); err != nil {
				t.Fatal(err)
			}
			defer p.disconnect()
			guestWrites := func() {
				if _, err := p.disk.WriteAt(make([]byte, 4096), 0); err != nil {
					t.Error(err)
				}
			}
			if err = p.connect(t.Context()); err == nil {
				guestWrites()
				disk.fails.Store(true)
				err = p.checkpoint(t.Context())
			}
			if !errors.Is(err, errUnstable) && !strings.Contains(fmt.Sprint(err), "not today") {
				t.Errorf("it fails with %v", err)
			}
			guestWrites()
			if i := p.disk.Info(); i.Held != 0 {
				t.Errorf("%d bytes are held, and nobody loads the checkpoint", i.HeldBytes)
			}
		})
	}
}
