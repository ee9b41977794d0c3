package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// jobIn returns a job that is in a state, and does nothing.
func jobIn(s State) *Job {
	j := &Job{cfg: Config{PeerTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)}, acts: map[*activity]struct{}{}, changed: make(chan struct{})}
	j.m.state = s
	return j
}

// newCopy returns what a secondary has of a guest after a synchronisation, without a copy
// if lean.
func newCopy(t *testing.T, g *colotest.VM, lean bool) *ram.Cache {
	t.Helper()
	c, err := ram.NewCache(g.Blocks(), g, ram.CacheConfig{StagedOnly: lean, Resumable: true})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	var stream bytes.Buffer
	s, w := ram.NewSaver(g.Blocks(), g, ram.SaverConfig{}), qemufile.NewWriter(&stream)
	if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w), w.Flush()); err != nil {
		t.Fatal(err)
	}
	c.NewSession()
	c.Resent()
	r := qemufile.NewReader(&stream)
	if err := errors.Join(c.LoadState(r, ram.Version), c.LoadState(r, ram.Version), c.Flush()); err != nil {
		t.Fatal(err)
	}
	return c
}

// Only after an end of the link is there a session that goes on from what a secondary has.
func TestACopyIsKeptOnlyAfterAnEndOfTheLink(t *testing.T) {
	step := func(err error) error { return &colo.Error{Op: "receive state", Err: err} }
	load := func(err error) error { return step(&ram.Error{Op: "load", Err: err}) }
	read := func(err error) error { return &qemufile.Error{Op: "read", Err: err} }
	for _, c := range []struct {
		name   string
		err    error
		ended  bool // the primary goes on
		leaves bool // and has said that it ends the session
		kept   bool
	}{
		{"the link ends between two messages", step(read(io.EOF)), false, false, true},
		{"the link ends within a page", load(read(io.ErrUnexpectedEOF)), false, false, true},
		{"the link times out within a page", load(read(&net.OpError{Op: "read", Err: colo.ErrTimeout})), false, false, true},
		{"the peer is lost", step(colo.ErrLost), false, false, true},
		{"a page was not sent again", step(&ram.Error{Op: "flush", Err: ram.ErrNotResent}), false, false, false},
		{"a page of no block", load(ram.ErrUnknownBlock), false, false, false},
		{"a page that is none", load(fmt.Errorf("x: %w", ram.ErrXBZRLE)), false, false, false},
		{"a name that is too long", load(read(qemufile.ErrTooLong)), false, false, false},
		{"more than may be staged", load(ram.ErrStagedFull), false, false, false},
		{"a log that fails", step(&ram.Error{Op: "dirty log", Err: io.ErrNoProgress}), false, false, false},
		{"the link ends, and the primary is heard to go on", step(read(io.EOF)), true, false, true},
		{"the primary ends it on purpose", step(read(io.EOF)), false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			j, p := jobIn(Waiting), newPeer(hello{Token: "one"})
			p.ended, p.leaves = c.ended || c.leaves, c.leaves
			j.keepCopy(&session{peer: p, cache: newCopy(t, g, false), epoch: 7, whole: true}, c.err)
			defer j.dropCopy()
			if (j.holds != nil) != c.kept || (j.copy != nil) != c.kept {
				t.Errorf("kept: %+v after %v", j.holds, c.err)
			}
			if c.kept && *j.holds != (position{Session: "one", Epoch: 7}) {
				t.Errorf("it holds %+v", *j.holds)
			}
		})
	}
}

// A link that is lost again while the list of written pages is on its way costs another
// attempt, and only one that is always lost there costs the memory. A list that is wrong
// does so at once.
func TestAListThatDoesNotComeIsWaitedForAgain(t *testing.T) {
	empty := append(binary.BigEndian.AppendUint32(nil, 1), 0)
	unknown := append(binary.BigEndian.AppendUint32(nil, 3), 1, 'x', 0)
	long := binary.BigEndian.AppendUint32(nil, 1<<31)
	for name, c := range map[string]struct {
		lists [][]byte
		kept  bool
	}{
		"lost once":                  {[][]byte{nil}, true},
		"lost twice":                 {[][]byte{nil, empty[:4]}, true},
		"lost in between":            {[][]byte{nil, nil, empty, nil, nil}, true},
		"lost each time":             {[][]byte{nil, nil, nil}, false},
		"of another guest":           {[][]byte{unknown}, false},
		"longer than any that fits":  {[][]byte{long}, false},
		"longer than what it is for": {[][]byte{append(binary.BigEndian.AppendUint32(nil, 2), 0, 0)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			j, p := jobIn(Alone), newPeer(hello{Token: "two"})
			p.resumes = &position{Session: "one", Lacks: true}
			j.base = newBase(t, g)
			for _, list := range c.lists {
				here, there := net.Pipe()
				go func() {
					there.Write(list)
					there.Close()
				}()
				s := &session{peer: p, wire: &counted{Conn: here}, base: j.base}
				if err := j.hearWritten(t.Context(), s); (err == nil) != bytes.Equal(list, empty) {
					t.Errorf("% x: %v", list, err)
				}
				here.Close()
			}
			if (j.base != nil) != c.kept {
				t.Errorf("kept: %v", j.base != nil)
			}
		})
	}
}

// A host that is to stop, or to go on by itself, does not wait for a primary that reads
// nothing.
func TestAListThatNobodyReadsHoldsNobodyUp(t *testing.T) {
	for name, stop := range map[string]func(j *Job, cancel func()){
		"a host that stops":         func(_ *Job, cancel func()) { cancel() },
		"a host that waits no more": func(j *Job, _ func()) { j.do(stopped, "") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
				if err != nil {
					t.Fatal(err)
				}
				defer g.Close()
				cache := newCopy(t, g, true)
				cache.Discard()
				if !cache.Resume() {
					t.Fatal("nothing to resume")
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				j, p := jobIn(Waiting), newPeer(hello{Token: "two"})
				p.resumes = &position{Session: "one", Lacks: true}
				here, there := net.Pipe()
				defer there.Close()
				told := make(chan error, 1)
				began := time.Now()
				go func() { told <- j.tellWritten(ctx, &session{peer: p, wire: &counted{Conn: here}, cache: cache}) }()
				synctest.Wait()
				stop(j, cancel)
				if err := <-told; !errors.Is(err, io.ErrClosedPipe) || !time.Now().Equal(began) {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			})
		})
	}
}
