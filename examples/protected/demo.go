package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/tied"
)

// A client reads the lines of both hosts and knows what a guest would have said.
type client struct {
	mu           sync.Mutex
	said         []round // by number, from 1
	lines        int
	again        int // said twice, in the same words: legal
	contradicted int // said twice, in other words
	lost         int
	wrong        int // not what follows from the line before
	from         string
	first        map[string]time.Time // of each host, when its next line is the first one: see mark
	last         time.Time
}

// line takes a line of a host.
func (c *client) line(host, s string) {
	var r round
	if _, err := fmt.Sscanf(s, "%d %d %x", &r.n, &r.time, &r.hash); err != nil || r.n == 0 {
		c.count(&c.wrong)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines++
	c.from, c.last = host, time.Now()
	if _, ok := c.first[host]; !ok {
		c.first[host] = c.last
	}
	have := uint64(len(c.said))
	switch {
	case r.n <= have && c.said[r.n-1] == r:
		c.again++
	case r.n <= have:
		c.contradicted++
	case r.n > have+1:
		c.lost++
	default:
		var before round
		if have > 0 {
			before = c.said[have-1]
		}
		if before.next(r.time) != r {
			c.wrong++
		}
		c.said = append(c.said, r)
	}
}

func (c *client) count(n *int) { c.mu.Lock(); defer c.mu.Unlock(); *n++ }

// mark forgets when a host was first heard, so that heard waits for a new line.
func (c *client) mark(host string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.first, host)
	return c.lines
}

// heard waits for the first line of a host since mark.
func (c *client) heard(ctx context.Context, host string) (time.Time, error) {
	for {
		c.mu.Lock()
		at, ok := c.first[host]
		c.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("nothing came from host %s: %w", host, context.Cause(ctx))
		}
	}
}

// A pair is both hosts, as processes of this program.
type pair struct {
	dir    string
	tls    bool
	mode   string
	client *client
	addr   map[string]string
	procs  map[string]*process
	ended  []*process
}

// process runs this program as one host of the demonstration.
type process struct {
	cmd     *exec.Cmd
	release func() // called when it has ended
	log     *watched
	reader  sync.WaitGroup
}

// watched keeps the log of a process.
type watched struct {
	mu  sync.Mutex
	all strings.Builder
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.Write(p)
}

func (w *watched) text() string { w.mu.Lock(); defer w.mu.Unlock(); return w.all.String() }

// state waits until the log of the process, without its first after bytes, says that the job
// has come to state s.
func (p *process) state(ctx context.Context, s string, after int) error {
	for !strings.Contains(p.log.text()[after:], "state="+s) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not %s: %w\n%s", s, ctx.Err(), p.log.text())
		}
	}
	return nil
}

func other(host string) string {
	if host == "a" {
		return "b"
	}
	return "a"
}

func (p *pair) start(host string, first bool, more ...string) error {
	args := []string{
		"-host", host, "-peer", other(host), "-listen", p.addr[host], "-dial", p.addr[other(host)],
		"-arbiter", filepath.Join(p.dir, "arbiter"), "-start=" + fmt.Sprint(first), "-term", "400ms", "-mode", p.mode,
	}
	if p.tls {
		args = append(args, "-cert", filepath.Join(p.dir, host+".pem"), "-key", filepath.Join(p.dir, host+".key"), "-ca", filepath.Join(p.dir, "ca.pem"))
	} else {
		args = append(args, "-insecure")
	}
	args = append(args, more...)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	proc := &process{cmd: exec.Command(self, args...), log: new(watched)}
	proc.cmd.Stderr = proc.log
	out, err := proc.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if proc.release, err = tied.Start(proc.cmd); err != nil {
		return err
	}
	proc.reader.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.client.line(host, s.Text())
		}
	})
	p.procs[host] = proc
	return nil
}

// newPair makes a pair whose processes keep what they share in a directory.
func newPair(dir string, secure bool, mode string) (*pair, error) {
	p := &pair{dir: dir, tls: secure, mode: mode, client: &client{first: map[string]time.Time{}}, addr: map[string]string{}, procs: map[string]*process{}}
	addresses, err := socket.ChooseTCP(2)
	if err != nil {
		return nil, err
	}
	p.addr["a"], p.addr["b"] = addresses[0], addresses[1]
	if secure {
		return p, makeCertificates(dir, "a", "b")
	}
	return p, nil
}

// close ends the processes that run.
func (p *pair) close() {
	for h := range p.procs {
		p.end(h)
	}
}

// end waits for a process that was killed.
func (p *pair) end(host string) {
	proc := p.procs[host]
	delete(p.procs, host)
	proc.cmd.Process.Signal(signals.Continue)
	proc.cmd.Process.Kill()
	proc.reader.Wait()
	proc.cmd.Wait()
	proc.release()
	p.ended = append(p.ended, proc)
}

// released adds up what all processes have reported: see report.
func (p *pair) released() (match, checkpoint uint64) {
	for _, proc := range slices.AppendSeq(slices.Clone(p.ended), maps.Values(p.procs)) {
		m, c := releasedIn(proc.log.text())
		match, checkpoint = match+m, checkpoint+c
	}
	return match, checkpoint
}

func releasedIn(log string) (match, checkpoint uint64) {
	for line := range strings.Lines(log) {
		var m, c uint64
		_, counts, _ := strings.Cut(line, "msg=released ")
		if n, _ := fmt.Sscanf(counts, "at-match=%d at-checkpoint=%d", &m, &c); n == 2 {
			match, checkpoint = match+m, checkpoint+c
		}
	}
	return match, checkpoint
}

func (p *pair) signal(host string, s os.Signal) error { return p.procs[host].cmd.Process.Signal(s) }

// protected waits until host leads and the other follows.
func (p *pair) protected(ctx context.Context, host string, after int) error {
	return p.procs[host].state(ctx, "protected", after)
}

func (p *pair) mark(host string) int { return len(p.procs[host].log.text()) }

// demo starts both hosts, kills, stops and switches them, and checks the lines of the guest.
func demo(ctx context.Context, args []string, stdout, _ io.Writer) error {
	f := flag.NewFlagSet("protected", flag.ContinueOnError)
	secure := f.Bool("tls", false, "the hosts show each other certificates")
	mode := modeFlag(f)
	if err := parse(f, args, stdout); err != nil {
		return err
	}
	if *mode != "continuous" && *mode != "compare" {
		return cli.Wrong("-mode %s: want continuous or compare", *mode)
	}
	err := play(ctx, stdout, *secure, *mode)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted") // not what it waited for
	}
	return err
}

func play(ctx context.Context, w io.Writer, secure bool, mode string) error {
	dir, err := os.MkdirTemp("", "protected")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := newPair(dir, secure, mode)
	if err != nil {
		return err
	}
	defer p.close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := errors.Join(p.start("b", false), p.start("a", true)); err != nil {
		return err
	}
	if err := p.protected(ctx, "a", 0); err != nil {
		return err
	}
	fmt.Fprintln(w, "the guest runs on host a and is protected by host b")
	if mode == "compare" {
		if err := compared(ctx, w, p); err != nil {
			return err
		}
	}
	lead := "a"
	for _, act := range []func(context.Context, io.Writer, *pair, *string) error{killed, returned, stoppedAndContinued, switched} {
		if err := act(ctx, w, p, &lead); err != nil {
			return err
		}
	}
	c := p.client
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(w, "%d lines: %d said twice in the same words, %d lost, %d contradicted, %d wrong\n", c.lines, c.again, c.lost, c.contradicted, c.wrong)
	if mode == "compare" {
		match, checkpoint := p.released()
		fmt.Fprintf(w, "by the hosts' own reports, %d lines left when both guests had said them, %d with a checkpoint\n", match, checkpoint)
	}
	if c.lost+c.contradicted+c.wrong > 0 {
		return errors.New("the client noticed")
	}
	return nil
}

// compared waits until lines have left because both guests have said them, and others with a
// checkpoint, since guests that have looked at the clock differ.
func compared(ctx context.Context, w io.Writer, p *pair) error {
	for {
		match, checkpoint := p.released()
		if match > 0 && checkpoint > 0 {
			fmt.Fprintln(w, "lines leave when both guests have said them, and with a checkpoint when they differ")
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d lines left when both guests had said them, %d with a checkpoint: %w", match, checkpoint, ctx.Err())
		}
	}
}

// killed kills the host with the guest, and waits for the other to go on.
func killed(ctx context.Context, w io.Writer, p *pair, lead *string) error {
	time.Sleep(300 * time.Millisecond)
	next := other(*lead)
	p.client.mark(next)
	at := time.Now()
	p.end(*lead)
	heard, err := p.client.heard(ctx, next)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "host %s is killed: host %s goes on after %v\n", *lead, next, heard.Sub(at).Round(time.Millisecond))
	*lead = next
	return nil
}

// returned starts the host again that was killed, and waits until it protects the guest.
func returned(ctx context.Context, w io.Writer, p *pair, lead *string) error {
	after := p.mark(*lead)
	if err := p.start(other(*lead), false); err != nil {
		return err
	}
	if err := p.protected(ctx, *lead, after); err != nil {
		return err
	}
	fmt.Fprintf(w, "host %s comes back, and protects host %s\n", other(*lead), *lead)
	return nil
}

// stoppedAndContinued stops the host with the guest for longer than it may act for the guest. When
// that host goes on, nothing leaves it, and it follows.
func stoppedAndContinued(ctx context.Context, w io.Writer, p *pair, lead *string) error {
	time.Sleep(200 * time.Millisecond)
	was, next := *lead, other(*lead)
	p.client.mark(next)
	at := time.Now()
	if err := p.signal(was, signals.Stop); err != nil {
		return err
	}
	heard, err := p.client.heard(ctx, next)
	if err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	p.client.mark(was)
	after := p.mark(next)
	if err := p.signal(was, signals.Continue); err != nil {
		return err
	}
	if err := p.protected(ctx, next, after); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	p.client.mu.Lock()
	_, spoke := p.client.first[was]
	p.client.mu.Unlock()
	if spoke {
		return fmt.Errorf("host %s was stopped past its term, and said something when it went on", was)
	}
	fmt.Fprintf(w, "host %s is stopped: host %s goes on after %v; when it is continued 0 lines leave it, and it protects\n", was, next, heard.Sub(at).Round(time.Millisecond))
	*lead = next
	return nil
}

// switched has the host with the guest hand it over.
func switched(ctx context.Context, w io.Writer, p *pair, lead *string) error {
	next := other(*lead)
	p.client.mark(next)
	after := p.mark(*lead)
	if err := p.signal(*lead, signals.User1); err != nil {
		return err
	}
	if _, err := p.client.heard(ctx, next); err != nil {
		return err
	}
	log := p.procs[*lead].log
	for !strings.Contains(log.text()[after:], "downtime=") {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return errors.New("the switchover does not end")
		}
	}
	_, downtime, _ := strings.Cut(log.text()[after:], "downtime=")
	downtime, _, _ = strings.Cut(downtime, "\n")
	fmt.Fprintf(w, "host %s hands the guest over to host %s: it stands still for %s\n", *lead, next, downtime)
	*lead = next
	return nil
}
