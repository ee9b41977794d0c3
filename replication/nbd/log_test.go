package nbd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// journal is a log that can be read while others write it, without times.
type journal struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.all.Write(p)
}

func (j *journal) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// want compares all that was logged so far, and forgets it.
func (j *journal) want(t *testing.T, why string, lines ...string) {
	t.Helper()
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	want := ""
	for _, l := range lines {
		want += l + "\n"
	}
	if got := j.all.String(); got != want {
		t.Errorf("%s: logged\n%swant\n%s", why, got, want)
	}
	j.all.Reset()
}

func TestAServerLogsWhoIsRefusedOrLost(t *testing.T) {
	var j journal
	cfg := ServerConfig{MaxConns: 1, Logger: j.logger(slog.LevelDebug).With("guest", "db1")}
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(cfg)
		_, err := srv.Export(ExportConfig{Disk: newRAM(4096), Name: "d0", Generation: 3})
		must(t, err)
		l := newPipes()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ctx, l) }()

		_, err = NewClient(ctx, l.connect(), ClientConfig{Export: "d0@2"})
		wantErr(t, "an old generation", err, ErrPolicy)
		j.want(t, "an old generation",
			`level=WARN msg="a client of a disk was refused" guest=db1 from=pipe asked=d0@2 error="nbd: option 10 refused, code 2: \"generation 2 was asked for, the export has 3\""`,
			`level=DEBUG msg="a client of a disk was refused" guest=db1 from=pipe asked=d0@2 error="nbd: option 7 refused, code 2: \"generation 2 was asked for, the export has 3\""`,
			`level=DEBUG msg="a client of a disk has gone before it had chosen one" guest=db1 from=pipe`)

		c, err := NewClient(ctx, l.connect(), ClientConfig{Export: "d0@3"})
		must(t, err)
		must(t, c.Sync())
		must(t, c.Close())
		j.want(t, "one that comes and goes",
			`level=DEBUG msg="a client of a disk has come" guest=db1 from=pipe export=d0 generation=3`,
			`level=DEBUG msg="a client of a disk has gone" guest=db1 from=pipe export=d0 generation=3 error=<nil>`)

		a := l.connect()
		c, err = NewClient(ctx, a, ClientConfig{Export: "d0@3"})
		must(t, err)
		a.Write(bytes.Repeat([]byte{7}, requestLen))
		j.want(t, "one that speaks something else",
			`level=DEBUG msg="a client of a disk has come" guest=db1 from=pipe export=d0 generation=3`,
			`level=WARN msg="the connection of a client of a disk has failed" guest=db1 from=pipe export=d0 generation=3 error="`+(&ProtocolError{"request magic", 0x07070707}).Error()+`"`)
		c.Close()

		silent := l.connect()
		time.Sleep(10 * time.Second)
		c, err = NewClient(ctx, l.connect(), ClientConfig{Export: "d0@3"})
		must(t, err)
		j.want(t, "one that was in the way",
			`level=WARN msg="a client that did not choose a disk was closed to make room for another" guest=db1 from=pipe`,
			`level=DEBUG msg="a client of a disk has come" guest=db1 from=pipe export=d0 generation=3`)
		silent.Close()
		must(t, c.Close())
		j.want(t, "the end of that", `level=DEBUG msg="a client of a disk has gone" guest=db1 from=pipe export=d0 generation=3 error=<nil>`)

		for range 3 {
			l.errs <- syscall.EMFILE
		}
		wakes := l.connect() // Accept, which is full of errors then
		time.Sleep(time.Minute)
		wakes.Close()
		j.want(t, "a host without descriptors", fmt.Sprintf(`level=WARN msg="no client of a disk can be accepted for now" guest=db1 error=%q`, "accept: accept4: "+syscall.EMFILE.Error()),
			`level=DEBUG msg="a client of a disk has gone before it had chosen one" guest=db1 from=pipe`)
		cancel()
		wantErr(t, "Serve", <-served, ErrServerClosed)
	})
}

// A client may ask as often as it likes: it is told of once.
func TestAClientThatIsRefusedAllTheTimeIsLoggedOnce(t *testing.T) {
	var j journal
	servePipes(t, ServerConfig{Logger: j.logger(slog.LevelInfo)}, ErrServerClosed, func(l *pipes) {
		conn := l.connect()
		var wg sync.WaitGroup
		wg.Go(func() {
			for p := make([]byte, 100); ; {
				if _, err := conn.Read(p); err != nil {
					return
				}
			}
		})
		d := &dialogue{conn: conn}
		conn.Write([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
		name := strings.Repeat("x", 4000)
		for range 50 {
			must(t, d.send(99, nil)) // not known, which is no refusal
			must(t, d.send(optInfo, append([]byte{0, 0, 4000 >> 8, 4000 & 255}, name+"\x00\x00"...)))
		}
		conn.Close()
		wg.Wait()
		j.want(t, "fifty refusals", `level=WARN msg="a client of a disk was refused" from=pipe asked=`+name[:100]+`... error="nbd: option 6 refused, code 6: \"no such export\""`)
	})
}

func TestAClientLogsALostLinkAndNotItsOwnEnd(t *testing.T) {
	var j journal
	servePipes(t, ServerConfig{}, ErrServerClosed, func(l *pipes) {
		cfg := ClientConfig{Logger: j.logger(slog.LevelDebug).With("guest", "db1")}
		c, err := NewClient(context.Background(), l.connect(), cfg)
		must(t, err)
		must(t, c.Close())
		j.want(t, "its own end")
		a := l.connect()
		c, err = NewClient(context.Background(), a, cfg)
		must(t, err)
		a.Close()
		if err := c.Sync(); err == nil {
			t.Error("a broken connection works")
		}
		synctest.Wait()
		j.mu.Lock()
		got := j.all.String()
		j.all.Reset()
		j.mu.Unlock()
		if !strings.HasPrefix(got, `level=WARN msg="the connection to a disk's server has failed" guest=db1 to=pipe export="" requests=`) || strings.Count(got, "\n") != 1 {
			t.Errorf("logged %q", got)
		}
		c.Close()
		j.want(t, "it has been told already")
	})
}
