package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// killedArgs, in the environment of a process of this test, has the command line of a diskreplica that it is.
const killedArgs = "DISKREPLICA_KILLED"

// beKilled is the main function of such a process.
func beKilled(args string) {
	os.Exit(statusOf(run(context.Background(), strings.Split(args, "\n"), orphanEnds{}, os.Stdout, false), os.Stderr))
}

// orphanEnds is the standard input of a process that ends when the test is gone.
type orphanEnds struct{}

func (orphanEnds) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	if err != nil {
		os.Exit(1)
	}
	return n, nil
}

// victim is a diskreplica in a process of its own, which is killed.
type victim struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed when the process is over
	said  []string    // for the message of a failure
	shot  atomic.Bool // it was killed by the test
}

func spawn(t *testing.T, args ...string) *victim {
	t.Helper()
	v := &victim{t: t, lines: make(chan string, 1000), cmd: exec.Command(os.Args[0])}
	v.cmd.Env = append(os.Environ(), killedArgs+"="+strings.Join(args, "\n"))
	v.said = append(v.said, fmt.Sprint(args))
	in, err := v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.in, v.cmd.Stderr = in, v.cmd.Stdout
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(v.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			v.lines <- s.Text()
		}
		v.cmd.Wait()
	}()
	t.Cleanup(func() { v.kill(); v.rest() })
	return v
}

func (v *victim) kill() {
	v.shot.Store(true)
	v.cmd.Process.Kill()
}

// rest takes what the process has still said, once it is dead.
func (v *victim) rest() {
	for l := range v.lines {
		v.said = append(v.said, l)
	}
}

// hear returns the next line that has one of the words, or "" if the process was killed before.
func (v *victim) hear(words ...string) string {
	v.t.Helper()
	late := time.NewTimer(5 * time.Minute)
	defer late.Stop()
	for {
		select {
		case l, ok := <-v.lines:
			if !ok && v.shot.Load() {
				return ""
			}
			if v.said = append(v.said, l); !ok {
				v.t.Fatalf("the process ended by itself:\n%s", strings.Join(v.said, "\n"))
			}
			for _, w := range words {
				if strings.Contains(l, w) {
					return l
				}
			}
		case <-late.C:
			v.t.Fatalf("the process does not say %q:\n%s", words, strings.Join(v.said, "\n"))
		}
	}
}

// order gives a command, and returns the answer as hear does.
func (v *victim) order(command string, words ...string) string {
	v.t.Helper()
	io.WriteString(v.in, command+"\n")
	return v.hear(words...)
}
