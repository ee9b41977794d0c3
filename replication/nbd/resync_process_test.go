//go:build unix

package nbd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// resyncProcess is one side, in a process of its own. It obeys lines on the standard
// input, and answers each with a line.
func resyncProcess(side, dir string) error {
	in := bufio.NewScanner(os.Stdin)
	next := func() string {
		if !in.Scan() {
			os.Exit(0) // the test is over
		}
		return in.Text()
	}
	if side == "primary" {
		return resyncPrimary(dir, next)
	}
	return resyncSecondary(dir, next)
}

func resyncSecondary(dir string, next func() string) error {
	ctx := context.Background()
	d, err := replication.CreateFile(filepath.Join(dir, "b"), resyncSize)
	if err != nil {
		return err
	}
	j, err := replication.OpenJournalFiles(filepath.Join(dir, "j"), 2*resyncSize)
	if err != nil {
		return err
	}
	if _, _, err := j.Recover(ctx, d); err != nil {
		return err
	}
	s, err := replication.NewSecondary(d, replication.SecondaryConfig{Journal: j, Blank: true})
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "socket")
	os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	srv := nbd.NewServer(nbd.ServerConfig{})
	go srv.Serve(ctx, ln)
	fmt.Println("ready")
	var exports []*nbd.Export
	for generation := uint64(1); ; {
		line := next()
		if line != "checkpoint" { // the primary of before is fenced off
			for _, e := range exports {
				if err := e.Close(ctx); err != nil {
					return err
				}
			}
			exports = nil
		}
		switch line {
		case "export":
			for name, disk := range map[string]replication.Disk{"disk": s.Export(), "identity": replication.NewIdentityDisk(s)} {
				e, err := srv.Export(nbd.ExportConfig{Name: nbd.Name(name, generation), Disk: disk})
				if err != nil {
					return err
				}
				exports = append(exports, e)
			}
			fmt.Println("export", nbd.Name("disk", generation), nbd.Name("identity", generation))
			generation++
		case "checkpoint":
			if s.State() == replication.Running {
				err = s.Checkpoint(ctx, s.Epoch()+1)
			} else {
				err = s.Start(ctx)
			}
			if err != nil {
				return err
			}
			fmt.Println("loaded", s.Epoch())
		case "failover":
			if err := s.Stop(ctx, true); err != nil {
				return err
			}
			fmt.Println("failover", s.Epoch())
		}
	}
}

// stepRemote, and stepIdentity, say where a synchronisation is.
type stepRemote struct {
	*nbd.Client
	at     func(step string)
	copies *atomic.Int64
	// Synchronise is over, and what Mark sends is no step.
	marked *atomic.Bool
}

func (r stepRemote) copy() { r.at(fmt.Sprint("copy ", r.copies.Add(1))) }

func (r stepRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	r.copy()
	r.Client.StartWrite(p, off, fua, done)
}

func (r stepRemote) StartZeroes(off, n int64, fua bool, done func(error)) {
	r.copy()
	r.Client.StartZeroes(off, n, fua, done)
}

func (r stepRemote) StartFlush(done func(error)) {
	if !r.marked.Load() {
		r.at("flush")
	}
	r.Client.StartFlush(done)
}

type stepIdentity struct {
	*nbd.Client
	at func(step string)
}

func (i stepIdentity) WriteAt(p []byte, off int64) (int, error) {
	i.at("adopt")
	n, err := i.Client.WriteAt(p, off)
	if err == nil {
		i.at("adopted")
	}
	return n, err
}

func resyncPrimary(dir string, next func() string) error {
	ctx := context.Background()
	d, err := replication.OpenFile(filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	p, err := replication.NewPrimary(d, replication.PrimaryConfig{})
	if err != nil {
		return err
	}
	go p.Run(ctx)
	fmt.Println("ready")
	var epoch uint64
	loaded := func() error {
		fmt.Println("checkpoint")
		answer, ok := strings.CutPrefix(next(), "loaded ")
		if !ok {
			return errors.New("there was no checkpoint")
		}
		epoch, err = strconv.ParseUint(answer, 10, 64)
		return err
	}
	socket := filepath.Join(dir, "socket")
	synchronise := func(disk, identity, stop string) error {
		if p.State() == replication.Running {
			p.Stop(ctx, false)
		}
		p.Detach()
		at := func(step string) {
			if step == stop {
				fmt.Println("at", step)
				next()
			}
		}
		conn, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: disk})
		if err != nil {
			return err
		}
		id, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: identity})
		if err != nil {
			return err
		}
		remote := stepRemote{conn, at, new(atomic.Int64), new(atomic.Bool)}
		at("attach")
		if err := p.Attach(replication.WithIdentity(remote, stepIdentity{id, at})); err != nil {
			return err
		}
		at("begin")
		if err := p.Synchronise(ctx, replication.SyncConfig{}); err != nil {
			return err
		}
		remote.marked.Store(true)
		at("mark")
		if err := p.Mark(ctx, 0); err != nil {
			return err
		}
		at("checkpoint")
		if err := loaded(); err != nil {
			return err
		}
		at("loaded")
		if err := p.Loaded(ctx, 0); err != nil {
			return err
		}
		at("start")
		return p.Start(ctx)
	}
	for {
		words := strings.SplitN(next(), " ", 4)
		err, said := error(nil), words[0]
		switch words[0] {
		case "synchronise":
			err = synchronise(words[1], words[2], words[3])
		case "write":
			var seed uint64
			seed, err = strconv.ParseUint(words[1], 10, 64)
			resyncScript(seed, func(off, n int64, fill byte) {
				if fill == 0 {
					err = errors.Join(err, p.WriteZeroes(off, n))
					return
				}
				_, failed := p.WriteAt(bytes.Repeat([]byte{fill}, int(n)), off)
				err = errors.Join(err, failed)
			})
			err = errors.Join(err, p.Sync())
		case "check":
			if err = p.Mark(ctx, epoch+1); err == nil {
				if err = loaded(); err == nil {
					err = p.Loaded(ctx, epoch)
				}
			}
		case "alone":
			err = p.Stop(ctx, true)
		}
		if err != nil {
			said = "error " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		fmt.Println(said)
	}
}
