//go:build unix

package program

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/require"
	"go.uber.org/goleak"
)

// behaves makes this test binary a program, which does what it says.
const behaves = "LOCKSTEP_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if how := os.Getenv(behaves); how != "" {
		os.Exit(behave(how))
	}
	goleak.VerifyTestMain(m)
}

// behave is a program: "serve DIR", or one that does not do what it should.
func behave(how string) int {
	fmt.Fprintln(os.Stderr, os.Getpid())
	how, arg, _ := strings.Cut(how, " ")
	in := bufio.NewReader(os.Stdin)
	request := func() string {
		line, err := in.ReadString('\n')
		if err != nil {
			os.Exit(3)
		}
		return line
	}
	switch how {
	case "serve":
		store, err := sharedfile.Open(arg)
		if err == nil {
			err = Serve(context.Background(), os.Stdin, os.Stdout, store)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "say": // an answer to the first request, and then as it should
		request()
		fmt.Println(arg)
		io.Copy(io.Discard, in)
	case "endless":
		request()
		for {
			if _, err := fmt.Print(strings.Repeat("x", 1<<16)); err != nil {
				return 1
			}
		}
	case "end":
		request()
		return 7
	case "first": // one that is "deaf" or "mute", and then one that serves
		how, dir, _ := strings.Cut(arg, " ")
		if os.Mkdir(dir, 0o700) == nil {
			return behave(how)
		}
		return behave("serve " + filepath.Join(dir, "guest"))
	case "deaf": // it neither reads nor answers
		time.Sleep(time.Hour)
	case "mute": // it reads, and does not answer
		io.Copy(io.Discard, in)
	}
	return 0
}

// numbers hears the numbers of the processes that programs say first.
type numbers chan int

func (n numbers) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			n <- pid
		}
	}
	return len(p), nil
}

// started returns a store whose program is this binary, and runs it for the test.
func started(t *testing.T, how string, cfg Config) *Store {
	t.Helper()
	require.Outside(t, require.Processes)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Command = []string{"/usr/bin/env", behaves + "=" + how, self}
	return running(t, cfg)
}

func running(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
	return s
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestArbiterOverPrograms(t *testing.T) {
	require.Outside(t, require.Processes)
	failovertest.TestArbiter(t, 300*time.Millisecond, func(t *testing.T) failovertest.Two {
		dir := filepath.Join(t.TempDir(), "guest")
		open := func() failover.Arbiter {
			return failover.NewStoreArbiter(started(t, "serve "+dir, Config{Timeout: time.Minute}))
		}
		return failovertest.Two{A: open(), B: open()}
	})
}

func TestProgramsAreStores(t *testing.T) {
	require.Outside(t, require.Processes)
	failovertest.TestStore(t, func(t *testing.T) failovertest.Stores {
		dir := filepath.Join(t.TempDir(), "guest")
		open := func() failover.Store { return started(t, "serve "+dir, Config{Timeout: time.Minute}) }
		return failovertest.Stores{A: open(), B: open()}
	})
}

// What is lost with a program is an answer, never the record, and the next request has a new
// program to go to.
func TestAProgramThatIsKilledIsStartedAnew(t *testing.T) {
	t.Parallel()
	pids := make(numbers, 10)
	s := started(t, "serve "+filepath.Join(t.TempDir(), "guest"), Config{Timeout: time.Minute, Stderr: pids})
	ctx := within(t)
	if ok, err := s.Swap(ctx, failover.Record{}, first); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for range 3 {
		waits := make(chan error, 1)
		go func() {
			_, err := s.Changed(ctx, first)
			waits <- err
		}()
		for s.asked() == 0 {
			time.Sleep(time.Millisecond)
		}
		if err := syscall.Kill(<-pids, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; !errors.Is(err, ErrEnded) || errors.Is(err, failover.ErrRefused) {
			t.Errorf("what waited has ended with %v", err)
		}
		if r, err := s.Load(ctx); err != nil || r != first {
			t.Errorf("the next program says %+v, %v", r, err)
		}
	}
}

// asked returns how many requests wait.
func (s *Store) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

func TestAnAnswerThatIsNoneIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		how  string
		want error  // "": it has a text
		text string // of the error
	}{
		"no JSON":                 {"say nothing", errLine, "malformed line"},
		"an unknown member":       {`say {"id":1,"records":1}`, errLine, "records"},
		"two answers in a line":   {`say {"id":1} {"id":1}`, errLine, "more after it"},
		"a record that is none":   {`say {"id":1,"record":{"format":"x"}}`, failover.ErrRecord, "its format"},
		"to nobody's request":     {`say {"id":2}`, errLine, "request 2, which there was not"},
		"to request 0":            {`say {"error":"x"}`, errLine, "request 0"},
		"a line without an end":   {"endless", errLine, "too long"},
		"an error":                {`say {"id":1,"error":"no leader"}`, nil, "program: load: no leader"},
		"a long error":            {`say {"id":1,"error":"` + strings.Repeat("e", 3*maxText) + `"}`, nil, "program: load: " + strings.Repeat("e", maxText)},
		"it ends, and says how":   {"end", ErrEnded, "exit status 7"},
		"an end and an open pipe": {"", ErrEnded, "exit status 9"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Outside(t, require.Processes)
			s := (*Store)(nil)
			if c.how != "" {
				s = started(t, c.how, Config{Timeout: time.Minute})
			} else {
				s = running(t, Config{Timeout: time.Minute, Command: []string{"sh", "-c", "read line; sleep 20 & exit 9"}})
			}
			_, err := s.Load(within(t))
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%.300v, want %v, %.40q", err, c.want, c.text)
			}
			if errors.Is(err, failover.ErrRefused) {
				t.Error("it is taken for a refusal")
			}
			if len(err.Error()) > maxText+200 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestARecordThatHasNotChangedIsNoAnswer(t *testing.T) {
	s := started(t, `say {"id":1,"record":`+strings.TrimSpace(string(first.Encode()))+`}`, Config{})
	if _, err := s.Changed(within(t), first); err == nil || !strings.Contains(err.Error(), "the record that was seen") {
		t.Error(err)
	}
}

func TestAProgramThatDoesNotAnswerIsWaitedForInTime(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"mute", "deaf"} {
		t.Run(how, func(t *testing.T) {
			s := started(t, how, Config{Timeout: 50 * time.Millisecond})
			if _, err := s.Load(within(t)); !errors.Is(err, errSlow) {
				t.Errorf("load: %v", err)
			}
			if _, err := s.Swap(within(t), failover.Record{}, first); !errors.Is(err, errSlow) {
				t.Errorf("swap: %v", err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("enough")
			cancel(why)
			if _, err := s.Changed(ctx, first); !errors.Is(err, why) {
				t.Errorf("changed: %v", err)
			}
			if n := s.asked(); n != 0 {
				t.Errorf("%d requests wait for ever", n)
			}
		})
	}
}

// A program that hangs, whatever in, would otherwise be an arbiter that nobody can ask any more.
func TestAProgramThatHangsIsStartedAnew(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"mute", "deaf"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pids := make(numbers, 100)
			s := started(t, "first "+how+" "+filepath.Join(t.TempDir(), "begun"), Config{Timeout: 200 * time.Millisecond, Stderr: pids})
			ctx := within(t)
			hung := 0
			for {
				_, err := s.Load(ctx)
				if err == nil {
					break
				}
				if hung++; ctx.Err() != nil || errors.Is(err, failover.ErrRefused) {
					t.Fatal(err)
				}
			}
			if hung == 0 {
				t.Error("it has answered, and was to hang")
			}
			if pid := <-pids; !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
				t.Errorf("process %d hangs on", pid)
			}
		})
	}
}

// beginDumb has s talk to a program that never answers, and returns how often it was killed.
func beginDumb(t *testing.T, s *Store) (killed *int) {
	t.Helper()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); w.Close() })
	killed = new(int)
	s.begin(&process{in: w, kill: func() { *killed++ }})
	return killed
}

// One that answers anything does not hang, however long it takes for something else.
// (The time that a write to the pipe has, a Timeout, is not the bubble's: so it is a long one.)
func TestAProgramThatAnswersIsLeftAsItIs(t *testing.T) {
	s, err := New(Config{Command: []string{"none"}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		killed := beginDumb(t, s)
		for range 50 {
			if _, err := s.Load(t.Context()); !errors.Is(err, errSlow) {
				t.Fatal(err)
			}
			if err := s.read(strings.NewReader(fmt.Sprintf("{\"id\":%d,\"error\":\"late\"}\n", s.last-1))); err != nil {
				t.Fatal(err)
			}
		}
		if *killed > 0 {
			t.Fatal("a slow program was ended")
		}
		for range 11 {
			if _, err := s.Load(t.Context()); !errors.Is(err, errSlow) {
				t.Fatal(err)
			}
		}
		if *killed == 0 {
			t.Error("one that says nothing is waited for")
		}
	})
}

// A Load that its caller gives up has no answer to wait for: the hour after it is none of a
// program that hangs while a Load waits.
func TestAProgramThatNobodyAsksDoesNotHang(t *testing.T) {
	s, err := New(Config{Command: []string{"none"}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		killed := beginDumb(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := s.Load(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for range 9 {
			if _, err := s.Load(t.Context()); !errors.Is(err, errSlow) {
				t.Fatal(err)
			}
		}
		if *killed > 0 {
			t.Error("a program that was asked a moment ago was ended")
		}
		if _, err := s.Load(t.Context()); !errors.Is(err, errSlow) || *killed == 0 {
			t.Errorf("after ten Timeouts in which a Load waited it was not ended; %v", err)
		}
	})
}

// Requests that a program does not read fill the pipe, and hold up nobody for longer than
// their time.
func TestAProgramThatReadsNothingIsEnded(t *testing.T) {
	t.Parallel()
	s := started(t, "deaf", Config{Timeout: 20 * time.Millisecond})
	big := first
	big.Note = strings.Repeat("n", failover.MaxNote)
	for ctx := within(t); ctx.Err() == nil; {
		_, err := s.Swap(ctx, big, big)
		if err == nil {
			t.Fatal("it has answered")
		}
		if errors.Is(err, ErrEnded) {
			return
		}
	}
	t.Error("the program was left as it is")
}

func TestAsManyRequestsAsThereMayBe(t *testing.T) {
	s := started(t, "mute", Config{})
	ctx, cancel := context.WithCancel(within(t))
	var group sync.WaitGroup
	for range MaxRequests {
		group.Go(func() {
			if _, err := s.Changed(ctx, first); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	for s.asked() < MaxRequests {
		time.Sleep(time.Millisecond)
	}
	if _, err := s.Load(ctx); err == nil || !strings.Contains(err.Error(), "more than 64 requests") {
		t.Error(err)
	}
	cancel()
	group.Wait()
}

func TestAProgramThatCannotBeStartedSaysWhy(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no command was taken")
	}
	require.Outside(t, require.Processes)
	s := running(t, Config{Command: []string{"/nowhere/lockstep-etcd"}, Timeout: 100 * time.Millisecond})
	ctx := within(t)
	_, err := s.Load(ctx)
	for errors.Is(err, errSlow) && !errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
		_, err = s.Load(ctx) // nobody has tried to start it before
	}
	if !errors.Is(err, errSlow) || !errors.Is(err, os.ErrNotExist) || !errors.Is(err, ErrEnded) {
		t.Error(err)
	}
}

// Run returns when the program has ended, also one that takes no notice.
func TestRunEndsTheProgram(t *testing.T) {
	t.Parallel()
	require.Outside(t, require.Processes)
	for _, how := range []string{"mute", "deaf"} {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		pids := make(numbers, 10)
		s, err := New(Config{Command: []string{"/usr/bin/env", behaves + "=" + how, self}, Stderr: pids})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		ask, given := context.WithTimeout(ctx, 200*time.Millisecond)
		s.Load(ask)
		given()
		pid := <-pids
		cancel()
		<-done
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: its process: %v", how, err)
		}
		if _, err := s.Load(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: load after the end: %v", how, err)
		}
	}
}
