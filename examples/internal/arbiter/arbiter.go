// Package arbiter opens the arbiter that the flag -arbiter of an example names.
package arbiter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/program"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/cli"
)

// Forms lists the names that Open takes, for a usage text.
const Forms = "file:DIR, etcd:HOST:PORT,... or store:COMMAND"

// etcdProgram keeps a record in etcd: see failover/etcd.
const etcdProgram = "lockstep-etcd"

// Named reports whether s has the form of a name that Open takes.
func Named(s string) bool {
	kind, _, _ := strings.Cut(s, ":")
	return kind == "file" || kind == "etcd" || kind == "store"
}

// Check returns an error unless s names an arbiter, as Open would.
func Check(s, guest string) error {
	_, _, err := find(s, guest, nil)
	return err
}

// Open returns the arbiter that s names, which decides about one guest:
//
//   - file:DIR, a directory that both hosts reach, of this guest alone;
//   - etcd:HOST:PORT,..., the members of an etcd cluster, by the program lockstep-etcd, with
//     the key /lockstep/GUEST, if the guest has a name;
//   - store:COMMAND, a program that keeps the record, with its arguments: see package
//     failover/program. There are no quotation marks.
//
// say is called with each line that the program writes. The caller calls end when it has asked
// the arbiter for the last time, to end the program: a host that is told to end first gives
// its guest up.
func Open(s, guest string, say func(line string)) (a failover.Arbiter, end func(), err error) {
	a, store, err := find(s, guest, say)
	if err != nil || store == nil {
		return a, func() {}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { store.Run(ctx) })
	return a, func() { cancel(); running.Wait() }, nil
}

// find returns the arbiter, and the store that is to be run for it, if there is one.
func find(s, guest string, say func(line string)) (a failover.Arbiter, store *program.Store, err error) {
	kind, rest, ok := strings.Cut(s, ":")
	if rest = strings.TrimSpace(rest); !ok || !Named(s) || rest == "" {
		forms := Forms
		if guest == "" {
			forms = "file:DIR or store:COMMAND"
		}
		return nil, nil, fmt.Errorf("%q: want %s, of this guest alone, which both hosts reach", s, forms)
	}
	var command []string
	switch kind {
	case "file":
		a, err := sharedfile.New(rest)
		if errors.Is(err, fs.ErrNotExist) { // it says what to do
			return nil, nil, fmt.Errorf("%s: %w", s, err)
		}
		if err != nil {
			return nil, nil, cli.Opening(s, "", err)
		}
		if say != nil {
			tellDamaged(a, say)
		}
		return a, nil, nil
	case "etcd":
		if guest == "" {
			return nil, nil, fmt.Errorf("%s: the guest has no name here to make a key of; want store:%s -endpoints %s -key KEY", s, etcdProgram, rest)
		}
		for member := range strings.SplitSeq(rest, ",") {
			if err := cli.CheckEndpoint(member); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", s, err)
			}
		}
		path, err := beside(etcdProgram)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w; in a checkout of lockstep, cd failover/etcd && go install ./%s", s, err, etcdProgram)
		}
		command = []string{path, "-endpoints", rest, "-key", "/lockstep/" + guest}
	default:
		command = strings.Fields(rest)
		if command[0], err = exec.LookPath(command[0]); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	if store, err = program.New(program.Config{Command: command, Stderr: &lines{say: say}}); err != nil {
		return nil, nil, err
	}
	return failover.NewStoreArbiter(store), store, nil
}

// tellDamaged says so where the record in a directory cannot be understood: nobody is granted the guest as long as that
// is so, and a host that follows would find out when it is to take over.
func tellDamaged(a failover.Arbiter, say func(line string)) {
	if _, err := a.Record(context.Background()); errors.Is(err, failover.ErrRecord) {
		say(err.Error())
		say("no host takes over until a person has written the record anew: see \"An arbiter that has lost its record\" in docs/operations.md")
	}
}

// maxLine bounds a line that a program writes, in bytes.
const maxLine = 500

// lines calls say for each line that is written.
type lines struct {
	say func(line string)

	mu   sync.Mutex // what an earlier program has started may still write
	part []byte
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		switch {
		case c == '\n':
			l.say(string(l.part))
			l.part = l.part[:0]
		case len(l.part) < maxLine:
			l.part = append(l.part, c)
		}
	}
	return len(p), nil
}

// beside returns the path of a program beside this one, or one that the system finds.
func beside(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return path, nil
		}
	}
	return exec.LookPath(name)
}
