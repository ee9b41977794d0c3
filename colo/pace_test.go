package colo_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// begun runs a secondary whose primary begins a migration, sends some pings at a time, as many as pings says, and is
// silent for the time every in between. It returns how the secondary has ended, and after how long; nil: it had not
// after an hour, when the primary closed the connection.
func begun(t *testing.T, pings int, every time.Duration, wrap func(*colotest.Conn) io.ReadWriteCloser, change func(*colo.SecondaryConfig)) (after time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, &world{cfg: small}, "secondary")
		cfg := h.secondary()
		if change != nil {
			change(&cfg)
		}
		here, there := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		s, e := colo.NewSecondary(wrap(here), cfg)
		if e != nil {
			t.Fatal(e)
		}
		var head bytes.Buffer
		w := qemufile.NewWriter(&head)
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "sim"})
		w.Flush()
		begin := time.Now()
		h.run(t.Context(), s)
		answers := make(chan struct{})
		go func() {
			defer close(answers)
			io.Copy(io.Discard, there)
		}()
		there.Write(head.Bytes())
		some := bytes.Repeat([]byte("\x08\x00\x02\x00\x04ping"), pings)
		closed := false
		for !closed {
			if _, err := there.Write(some); err != nil {
				break
			}
			select {
			case <-h.done:
				closed = true
			case <-time.After(every):
			}
			if time.Since(begin) > time.Hour {
				break
			}
		}
		if time.Since(begin) <= time.Hour {
			err, after = h.wait(), time.Since(begin)
		}
		there.Close()
		h.wait()
		<-answers
		h.close()
	})
	return after, err
}

// Whoever can connect to a secondary would otherwise keep it for ever, and its true primary out.
func TestAPrimaryThatSendsAlmostNothingIsLost(t *testing.T) {
	const timeout, every = time.Minute, 50 * time.Second
	for name, wrap := range map[string]func(*colotest.Conn) io.ReadWriteCloser{
		"deadlines":    func(c *colotest.Conn) io.ReadWriteCloser { return c },
		"no deadlines": func(c *colotest.Conn) io.ReadWriteCloser { return bare{c} },
	} {
		t.Run(name, func(t *testing.T) {
			after, err := begun(t, 1, every, wrap, nil)
			if !errors.Is(err, colo.ErrTimeout) || !strings.Contains(err.Error(), "the peer sends less than 1024 bytes a second") {
				t.Errorf("ended with %v", err)
			}
			if after < 3*timeout || after > 3*timeout+every+5*time.Second { // and the wait for its answer to the last word
				t.Errorf("ended after %v", after)
			}
			if after, err = begun(t, 8192, every, wrap, nil); err != nil {
				t.Errorf("one that sends 73 KB every %v is lost after %v: %v", every, after, err)
			}
			if after, err = begun(t, 1, every, wrap, func(c *colo.SecondaryConfig) { c.MinRate = -1 }); err != nil {
				t.Errorf("without a bound it is lost after %v: %v", after, err)
			}
			h := new(beating)
			h.alive.Store(true)
			if after, err = begun(t, 1, every, wrap, func(c *colo.SecondaryConfig) { c.Heartbeat = h }); err != nil {
				t.Errorf("with a heartbeat it is lost after %v: %v", after, err)
			}
			if _, err = begun(t, 1, 2*timeout, wrap, nil); err == nil || !strings.Contains(err.Error(), "peer silent for") {
				t.Errorf("one that is silent ended with %v", err)
			}
		})
	}
}
