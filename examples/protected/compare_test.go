package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/mapping"
)

// Both hosts, in this process: the client hears each line once or again, from one
// host, and lines leave in both ways.
func TestComparedLinesLeaveAtAMatchAndAtACheckpoint(t *testing.T) {
	outsideGo(t)
	dir := t.TempDir()
	p, err := newPair(dir, false, "compare")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var group sync.WaitGroup
	t.Cleanup(group.Wait)
	t.Cleanup(cancel)
	log := new(watched)
	for _, name := range []string{"b", "a"} {
		args := []string{
			"-host", name, "-listen", p.addr[name], "-dial", p.addr[other(name)], "-arbiter", filepath.Join(dir, "arbiter"),
			"-insecure", "-mode", "compare", "-channels", "2", "-beat", "2s", "-term", "30s", // a busy machine loses nobody
		}
		if name == "a" {
			args = append(args, "-start")
		}
		r, w := io.Pipe()
		group.Go(func() {
			defer w.Close()
			if err := host(ctx, args, w, log); err != nil && ctx.Err() == nil {
				t.Errorf("host %s: %v", name, err)
				cancel()
			}
		})
		group.Go(func() {
			for s := bufio.NewScanner(r); s.Scan(); {
				p.client.line(name, s.Text())
			}
		})
	}
	for match, checkpoint := uint64(0), uint64(0); match == 0 || checkpoint == 0; {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d lines left at a match, %d at a checkpoint\n%s", match, checkpoint, log.text())
		}
		match, checkpoint = releasedIn(log.text())
	}
	c := p.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lines == 0 || c.lost+c.contradicted+c.wrong > 0 {
		t.Errorf("%d lines: %d lost, %d contradicted, %d wrong", c.lines, c.lost, c.contradicted, c.wrong)
	}
}

func TestAHostThatCannotWorkAsItsFlagsSayIsAWrongCommandLine(t *testing.T) {
	for flag, want := range map[string]string{"-channels=256": "256 Channels", "-term=1ms": "a term of 1ms", "-period=0": "-period 0s", "-period=-1s": "-period -1s"} {
		args := []string{"-host", "a", "-listen", "127.0.0.1:0", "-dial", "127.0.0.1:1", "-insecure", flag}
		if err := host(t.Context(), args, io.Discard, io.Discard); !errors.Is(err, cli.ErrWrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a wrong command line that has %q", flag, err, want)
		}
	}
}

// outsideGo has the memory of guests where the race detector does not look: a
// synchronisation reads what a guest goes on writing.
func outsideGo(t *testing.T) {
	var mu sync.Mutex
	var all [][]byte
	was := newMemory
	newMemory = func(size int) []byte {
		p, err := mapping.New(size)
		if err != nil {
			t.Error(err)
			return was(size)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, p)
		return p
	}
	t.Cleanup(func() {
		newMemory = was
		for _, p := range all {
			mapping.Free(p)
		}
	})
}

// What is compared is a datagram that any network stack would take.
func TestLinesAreSoundDatagrams(t *testing.T) {
	for n := range 64 {
		line := bytes.Repeat([]byte{'x'}, n)
		p := datagram(line)
		ip := p[14:]
		sum := uint32(0)
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		if sum = sum&0xffff + sum>>16; sum != 0xffff {
			t.Errorf("a line of %d: the header's sum is %#x", n, sum)
		}
		if all, udp := int(binary.BigEndian.Uint16(ip[2:])), int(binary.BigEndian.Uint16(ip[24:])); all != 28+n || udp != 8+n {
			t.Errorf("a line of %d: lengths %d and %d", n, all, udp)
		}
		if !bytes.Equal(p[len(header):], line) {
			t.Errorf("a line of %d has become %q", n, p[len(header):])
		}
	}
}

func TestCommandLinesAreOfOneHostOrOfBoth(t *testing.T) {
	for _, x := range []struct {
		args []string
		one  bool
	}{
		{nil, false}, {[]string{"-tls"}, false}, {[]string{"-mode", "compare"}, false}, {[]string{"-mode=compare", "--tls"}, false},
		{[]string{"-mode", "compare", "-host", "a"}, true}, {[]string{"-h"}, true}, {[]string{"--host=a"}, true}, {[]string{"-what"}, true},
	} {
		if one := ofOneHost(x.args); one != x.one {
			t.Errorf("%q is of one host: %v", x.args, one)
		}
	}
	if err := demo(t.Context(), []string{"-mode", "what"}, io.Discard, io.Discard); err == nil {
		t.Error("an unknown mode is accepted")
	}
	if err := host(t.Context(), []string{"-term", "1s"}, io.Discard, io.Discard); !errors.Is(err, cli.ErrWrong) {
		t.Errorf("one host without -host: %v", err)
	}
}
