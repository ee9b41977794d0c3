package program

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/google/go-cmp/cmp"
)

// first is a record.
var first = failover.Record{Generation: 1, Holder: "a", Token: "t", Term: time.Second, Writes: 1}

// conversation is Serve with somebody who asks by line.
type conversation struct {
	t    *testing.T
	in   *io.PipeWriter
	out  *bufio.Reader
	done chan error
}

func converse(t *testing.T, store failover.Store) *conversation {
	r, in := io.Pipe()
	out, w := io.Pipe()
	c := &conversation{t, in, bufio.NewReader(out), make(chan error, 1)}
	go func() {
		err := Serve(t.Context(), r, w, store)
		r.CloseWithError(errors.New("nobody reads"))
		w.Close()
		c.done <- err
	}()
	return c
}

func (c *conversation) say(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *conversation) hear(want string) {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil || line != want+"\n" {
		c.t.Fatalf("%q, %v, want %q", line, err, want)
	}
}

func TestAConversationIsThatOfThePackageComment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := converse(t, new(failovertest.Store))
		r := strings.TrimSpace(string(first.Encode()))
		c.say(`{"id":1,"do":"load"}`)
		c.hear(`{"id":1}`)
		c.say(`{"id":2,"do":"changed"}`) // from the zero Record
		synctest.Wait()
		c.say(`{"id":3,"do":"swap","next":%s}`, r)
		got := map[string]bool{}
		for range 2 { // in any order
			line, err := c.out.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			got[strings.TrimSpace(line)] = true
		}
		if diff := cmp.Diff(map[string]bool{`{"id":2,"record":` + r + `}`: true, `{"id":3,"swapped":true}`: true}, got); diff != "" {
			t.Error(diff)
		}
		c.say(`{"id":4,"do":"swap","next":%s}`, r)
		c.hear(`{"id":4}`)
		c.say(`{"id":5,"do":"changed","seen":%s}`, r)
		synctest.Wait()
		c.say(`{"id":6,"do":"forget","of":5}`)
		c.hear(`{"id":5,"error":"context canceled"}`)
		c.say(`{"id":7,"do":"forget","of":70}`) // no matter
		c.say(`{"id":8,"do":"load"}`)
		c.hear(`{"id":8,"record":` + r + `}`)
		c.say(`{"id":9,"do":"changed","seen":%s}`, r)
		synctest.Wait()
		c.in.Close() // what waits is given up
		c.hear(`{"id":9,"error":"program: the requests have ended"}`)
		if err := <-c.done; err != nil {
			t.Error(err)
		}
	})
}

func TestALineThatIsNoRequestEndsService(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":               "load\n",
		"nothing of that name":  `{"id":1,"do":"delete"}` + "\n",
		"an unknown member":     `{"id":1,"do":"load","force":true}` + "\n",
		"a brace too many":      `{"id":1,"do":"load"}}` + "\n",
		"two in a line":         `{"id":1,"do":"load"}{"id":2,"do":"load"}` + "\n",
		"a record that is none": `{"id":1,"do":"changed","seen":{}}` + "\n",
		"the same number twice": `{"id":1,"do":"changed"}` + "\n" + `{"id":1,"do":"changed"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			if err := Serve(t.Context(), strings.NewReader(line), io.Discard, new(failovertest.Store)); !errors.Is(err, errLine) {
				t.Error(err)
			}
		})
	}
	if err := Serve(t.Context(), strings.NewReader(strings.Repeat(" ", MaxLine+2)), io.Discard, new(failovertest.Store)); !errors.Is(err, bufio.ErrTooLong) {
		t.Error(err)
	}
}

func TestMoreRequestsThanThereMayBeAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := converse(t, new(failovertest.Store))
		for id := range MaxRequests {
			c.say(`{"id":%d,"do":"changed"}`, id+1)
		}
		c.say(`{"id":65,"do":"load"}`)
		c.hear(`{"id":65,"error":"more than 64 requests at one time"}`)
		c.say(`{"id":66,"do":"forget","of":7}`)
		c.hear(`{"id":7,"error":"context canceled"}`)
		c.say(`{"id":67,"do":"load"}`)
		c.hear(`{"id":67}`)
		go io.Copy(io.Discard, c.out)
		c.in.Close()
		if err := <-c.done; err != nil {
			t.Error(err)
		}
	})
}

func TestAnErrorOfTheStoreIsToldInItsWords(t *testing.T) {
	store := &failovertest.Store{Before: func(context.Context, string) error { return errors.New(strings.Repeat("no leader ", 200)) }}
	c := converse(t, store)
	c.say(`{"id":1,"do":"load"}`)
	c.hear(`{"id":1,"error":"` + strings.Repeat("no leader ", 200)[:maxText] + `"}`)
	c.in.Close()
	if err := <-c.done; err != nil {
		t.Error(err)
	}
}

// broken takes nothing.
type broken struct{}

var errBroken = errors.New("broken")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestAnAnswerThatCannotBeWrittenEndsService(t *testing.T) {
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		err := Serve(t.Context(), r, broken{}, new(failovertest.Store))
		r.CloseWithError(err)
		done <- err
	}()
	for id := 1; ; id++ {
		if _, err := fmt.Fprintf(w, "{\"id\":%d,\"do\":\"load\"}\n", id); err != nil {
			break
		}
	}
	if err := <-done; !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

// Whatever lines come, service ends with them, each answer is one line and names a request,
// and none comes twice.
func FuzzServe(f *testing.F) {
	r := strings.TrimSpace(string(first.Encode()))
	f.Add([]byte(`{"id":1,"do":"load"}` + "\n" + `{"id":2,"do":"swap","next":` + r + "}\n" + `{"id":3,"do":"changed","seen":` + r + "}\n" + `{"id":4,"do":"forget","of":3}` + "\n"))
	f.Add([]byte(`{"id":1,"do":"swap","old":` + r + `,"next":` + r + "}\n{}\n"))
	f.Fuzz(func(t *testing.T, lines []byte) {
		var out bytes.Buffer
		err := Serve(t.Context(), bytes.NewReader(lines), &out, new(failovertest.Store))
		if err != nil && !errors.Is(err, errLine) && !errors.Is(err, bufio.ErrTooLong) {
			t.Fatal(err)
		}
		ids := map[uint64]bool{}
		for line := range bytes.Lines(out.Bytes()) {
			var a answer
			if err := decode(line, &a); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if len(line) > MaxLine {
				t.Fatalf("an answer of %d bytes", len(line))
			}
			ids[a.ID] = true
		}
		if most := bytes.Count(lines, []byte("\n")) + 1; len(ids) > most {
			t.Fatalf("%d answers to %d lines", len(ids), most)
		}
	})
}

// Whatever a program says, reading it ends, and what waits has an answer or an end.
func FuzzAnswers(f *testing.F) {
	r := strings.TrimSpace(string(first.Encode()))
	f.Add([]byte(`{"id":1,"record":` + r + "}\n" + `{"id":2,"swapped":true}` + "\n"))
	f.Add([]byte(`{"id":2,"error":"x"}` + "\n" + `{"id":2}` + "\n" + `{"id":3}` + "\n"))
	f.Fuzz(func(t *testing.T, lines []byte) {
		s, err := New(Config{Command: []string{"none"}})
		if err != nil {
			t.Fatal(err)
		}
		s.last = 2
		one, two := make(chan answer, 1), make(chan answer, 1)
		s.waiting[1], s.waiting[2] = one, two
		if err := s.read(bytes.NewReader(lines)); err != nil && !errors.Is(err, errLine) {
			t.Fatal(err)
		}
		s.fail(ErrEnded)
		<-one // an answer, or closed
		<-two
	})
}
