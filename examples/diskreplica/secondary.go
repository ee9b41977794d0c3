package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

func openImage(o options) (f *replication.File, err error) {
	if o.size != 0 {
		f, err = replication.CreateFile(o.image, o.size)
	} else if f, err = replication.OpenFile(o.image); errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (-size makes it)", err)
	}
	if o.size != 0 && errors.Is(err, replication.ErrSize) {
		err = fmt.Errorf("%w (-size only makes an image that is not there: leave it out, or give the images of both sides that length with truncate -s)", err)
	}
	if err != nil {
		return nil, err
	}
	if err := replication.CheckDisk(f); err != nil { // before there is a journal for it
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// journalBytes returns how long each file of a journal is, so that all of an image of size bytes
// fits, as far as a journal can be so long.
func journalBytes(size int64) int64 { return max(min(size*2, 1<<41-4096), 1<<20) }

// secondary is the process of the secondary's side.
type secondary struct {
	*printer
	events event.Bus
	disk   *replication.Secondary
	srv    *nbd.Server

	ordered sync.WaitGroup // what commands have begun

	mu         turn // one command at a time, from whichever side
	generation uint64
	present    *visit // the primary that the disk has adopted last; nil: none, or it is fenced off
	promoted   bool
}

func runSecondary(ctx context.Context, o options, commands io.Reader, out *printer) (err error) {
	image, err := openImage(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	s := newSecondary(out)
	cfg := replication.SecondaryConfig{Name: diskName, Events: &s.events, Overwrite: o.overwrite, Blank: image.Made()}
	if o.journal != "" {
		j, err := replication.OpenJournalFiles(o.journal, journalBytes(image.Size()))
		if err != nil {
			return err
		}
		defer j.Close()
		if !j.Clean() {
			epoch, failedOver, err := j.Recover(ctx, image)
			if err != nil {
				return err
			}
			s.returned(map[string]any{"recovered": epoch, "failover": failedOver}, "recovered the disk of epoch %d, failover %v", epoch, failedOver)
		}
		cfg.Journal = j
	}
	if s.disk, err = replication.NewSecondary(image, cfg); err != nil {
		return err
	}
	return s.serve(ctx, o.listen, commands)
}

func newSecondary(out *printer) *secondary {
	s := &secondary{printer: out, srv: nbd.NewServer(nbd.ServerConfig{})}
	s.events.SubscribeAll(out.event)
	return s
}

// serve serves the disk and takes checkpoints, at addr, until ctx ends or commands say "quit".
func (s *secondary) serve(ctx context.Context, addr string, commands io.Reader) error {
	ln, err := listen(addr)
	if err != nil {
		return cli.Listening("-listen", err)
	}
	at, err := controlAddr(addr)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	cln, err := listen(at)
	if err != nil {
		return errors.Join(cli.Listening("-listen, where checkpoints are taken", err), ln.Close())
	}
	for _, e := range []nbd.ExportConfig{
		{Name: "guest", Disk: s.disk, MaxClients: 8, Description: "what the secondary's guest sees"},
		{Name: "sums", Disk: replication.NewSums(s.disk.Export()), ReadOnly: true, MaxClients: 8, Description: "checksums of the secondary disk"},
	} {
		if _, err := s.srv.Export(e); err != nil {
			return errors.Join(err, ln.Close(), cln.Close())
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.ordered.Wait()
	defer cancel()
	wg.Go(func() { s.srv.Serve(ctx, ln) })
	defer cln.Close()
	wg.Go(func() {
		serveVisits(ctx, cln, func(conn net.Conn) {
			v := &visit{s: s, conn: conn}
			serveControl(ctx, conn, v.arm, func(words []string) (string, error) { return s.answer(ctx, v, words) })
			v.leave(ctx)
		})
	})
	s.printf("secondary: %d bytes, serving at %s; waiting for a primary", s.disk.Size(), addr)
	err = s.obey(ctx, commands, nil, s.command)
	if err == nil {
		s.ordered.Wait() // a failover that was ordered is carried out before the program ends
	}
	return err
}

// answer carries out a request of the primary of v.
func (s *secondary) answer(ctx context.Context, v *visit, words []string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var epoch uint64
	if len(words) == 2 {
		var err error
		if epoch, err = parseCheckpoint(words[1]); err != nil {
			return "", err
		}
	}
	switch {
	case len(words) == 1 && words[0] == "hello":
		if st := s.disk.State(); st == replication.Failover || st == replication.FailoverFailed || s.promoted {
			return "", fmt.Errorf("this side went on alone, state %v", st)
		}
		return v.hello(ctx)
	case s.present != v:
		return "", errors.New("another primary has taken the place of this one, or none has been taken yet")
	case len(words) == 1 && words[0] == "start":
		// A primary that was lost and has come back has copied what was
		// missing; until now the last checkpoint has been kept beside it.
		var err error
		if s.disk.State() == replication.Running {
			err = s.disk.Checkpoint(ctx, s.disk.Epoch()+1)
		} else {
			err = s.disk.Start(ctx)
		}
		if err != nil {
			return "", err
		}
		s.events.Publish(event.CheckpointCommit{Mode: event.ModeSecondary, Epoch: s.disk.Epoch(), Cause: event.CauseInitial})
		return fmt.Sprintf("started %d", s.disk.Epoch()), nil
	case len(words) == 2 && words[0] == "checkpoint":
		if err := s.disk.Checkpoint(ctx, epoch); err != nil {
			return "", err
		}
		s.events.Publish(event.CheckpointCommit{Mode: event.ModeSecondary, Epoch: epoch})
		return fmt.Sprintf("loaded %d", epoch), nil
	}
	return "", fmt.Errorf("what is %q", words)
}

func (s *secondary) status() {
	st := status{State: s.disk.State().String(), Epoch: s.disk.Epoch(), Error: text(s.disk.Err())}
	active, hidden := s.disk.OverlayBytes()
	st.Active, st.Hidden = &active, &hidden
	s.returned(st, "state %s, epoch %d, overlays %d and %d KiB%s", st.State, st.Epoch, kib(active), kib(hidden), trouble(s.disk.Err()))
}

const secondaryHelp = `failover    go on alone, with the last checkpoint and the guest's own writes
stop        end replication, and restore the last checkpoint
grow SIZE   make the image longer, before the primary's, while both go on
status      state, epoch, and what the overlays hold
quit        leave`

func (s *secondary) command(ctx context.Context, line string) error {
	if size, is, err := longer(line); is {
		if err != nil {
			return err
		}
		return s.patiently(ctx, line, func() error { return s.grow(ctx, size) })
	}
	switch line {
	case "failover", "stop":
		return s.patiently(ctx, line, func() error { return s.end(ctx, line) })
	case "status":
		s.status() // which waits for nothing
	case "help":
		s.returned(secondaryHelp, "%s", secondaryHelp)
	default:
		return unknown(line)
	}
	return nil
}

// end carries out the commands failover and stop.
func (s *secondary) end(ctx context.Context, line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present != nil {
		if err := s.present.disk.Close(ctx); err != nil {
			return err
		}
		s.present = nil
	}
	if err := s.disk.Stop(ctx, line == "failover"); err != nil {
		if s.disk.State() == replication.FailoverFailed {
			err = fmt.Errorf("%w (the guest's view of the disk is whole: say failover again once that is mended)", err)
		}
		return err
	}
	if line == "failover" {
		s.promoted = true
		s.events.Publish(event.FailoverDone{Mode: event.ModeSecondary, Epoch: s.disk.Epoch(), Status: "completed"})
	} else {
		s.returned(struct{}{}, "stop: the disk is that of checkpoint %d", s.disk.Epoch())
	}
	return nil
}
