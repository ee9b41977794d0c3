package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

func sameMembers(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	xx, _ := json.Marshal(x)
	yy, _ := json.Marshal(y)
	return bytes.Equal(xx, yy)
}

// checkSchema wants each type that the schema mentions described once, and each
// command in it.
func checkSchema(t *testing.T, answer, names string) {
	t.Helper()
	type info struct {
		Name     string
		MetaType string `json:"meta-type"`
		ArgType  string `json:"arg-type"`
		RetType  string `json:"ret-type"`
		Element  string `json:"element-type"`
		Members  []struct{ Name, Type string }
		Values   []string
	}
	var schema struct{ Return []info }
	var commands struct{ Return []struct{ Name string } }
	if err := errors.Join(json.Unmarshal([]byte(answer), &schema), json.Unmarshal([]byte(names), &commands)); err != nil {
		t.Fatal(err)
	}
	types := make(map[string]info)
	for _, i := range schema.Return {
		if _, twice := types[i.MetaType+i.Name]; twice && i.MetaType != "enum" {
			t.Errorf("%s is described twice", i.Name)
		}
		if i.MetaType == "command" || i.MetaType == "event" {
			types[i.MetaType+" "+i.Name] = i
		} else {
			types[i.Name] = i
		}
	}
	for _, i := range schema.Return {
		all := []string{i.ArgType, i.RetType, i.Element}
		if i.MetaType == "object" {
			for _, m := range i.Members {
				all = append(all, m.Type)
			}
		}
		for _, name := range all {
			if _, ok := types[name]; name != "" && !ok {
				t.Errorf("%s needs %q, which is not described", i.Name, name)
			}
		}
	}
	for _, c := range commands.Return {
		if types["command "+c.Name].ArgType == "" {
			t.Errorf("%s is not described", c.Name)
		}
	}
	p := types[types["command paint"].ArgType]
	if len(p.Members) != 8 || !slices.Equal(types[p.Members[0].Type].Values, []string{"red", "blue"}) {
		t.Errorf("paint takes %+v", p)
	}
	if e := types[types["event COLO_EXIT"].ArgType]; len(e.Members) != 3 {
		t.Errorf("COLO_EXIT has %+v", e)
	}
}

func TestWhatTheHostRefusesIsAnsweredAndHarmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		h.state = "colo"
		qmp.RegisterMachine(s.Commands, refusing{h})
		h.mode = event.ModeSecondary
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		if got, want := say(t, conn, r, `{"execute":"cont"}`), `{"error": {"class": "GenericError", "desc": "a checkpoint is being committed"}}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := say(t, conn, r, `{"execute":"x-colo-lost-heartbeat"}`); got != `{"return": {}}` || h.lost != 1 {
			t.Errorf("%s, lost %d", got, h.lost)
		}
		if got, want := say(t, conn, r, `{"execute":"query-colo-status"}`), `{"return": {"last-mode": "none", "mode": "secondary", "reason": "none"}}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		say(t, conn, r, `{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":250}}`)
		if got, want := say(t, conn, r, `{"execute":"query-migrate-parameters"}`), `{"return": {"x-checkpoint-delay": 250}}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := say(t, conn, r, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"xbzrle","state":true}]}}`); !strings.Contains(got, "Capability 'xbzrle' is not supported") {
			t.Error(got)
		}
		if got := say(t, conn, r, `{"execute":"query-events"}`); !strings.Contains(got, `{"name": "WATCHDOG"}`) {
			t.Error(got)
		}
	})
}

type refusing struct{ *host }

func (refusing) Cont(context.Context) error { return errors.New("a checkpoint is being committed") }

func TestOfTooManyClientsTheLastWaitsUntilOneLeaves(t *testing.T) {
	_, s := newHost()
	s.MaxClients = 1
	addr := listen(t, s)
	first := dial(t, addr)
	if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	second := dial(t, addr)
	heard := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(second).ReadString('\n')
		heard <- err
	}()
	select {
	case err := <-heard:
		t.Errorf("the second hears something: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	if err := <-heard; err != nil {
		t.Errorf("when the first has left: %v", err)
	}
}

func TestTheEndOfAServerEndsItsClientsAndTheirCommands(t *testing.T) {
	_, s := newHost()
	began := make(chan struct{})
	qmp.Register(s.Commands, "forever", func(ctx context.Context, _ qmp.None) (qmp.None, error) {
		close(began)
		<-ctx.Done()
		return qmp.None{}, context.Cause(ctx)
	})
	l, err := qmp.Listen(filepath.Join(socket.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	var conns []*net.UnixConn
	for range 3 {
		conns = append(conns, dial(t, l.Addr().String()))
	}
	io.WriteString(conns[0], `{"execute":"qmp_capabilities"}{"execute":"forever"}`)
	<-began
	why := errors.New("enough")
	cancel(why)
	if err := <-done; err != why {
		t.Errorf("Serve: %v", err)
	}
	for i, c := range conns {
		if _, err := io.Copy(io.Discard, c); err != nil && i > 0 {
			t.Logf("client %d: %v", i, err) // one that was not accepted yet may be reset
		}
	}
}

func TestASocketThatNobodyListensOnIsReplaced(t *testing.T) {
	path := filepath.Join(socket.Dir(t), "s")
	l, err := qmp.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if second, err := qmp.Listen("unix:" + path); err == nil {
		second.Close()
		t.Error("one that somebody listens on is replaced")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := qmp.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := qmp.Listen("unix:" + path); err == nil {
		l.Close()
		t.Error("a file that is no socket is replaced")
	}
	for _, addr := range []string{"", "unix:"} {
		if l, err := qmp.Listen(addr); err == nil {
			l.Close()
			t.Errorf("%q is listened at as %v", addr, l.Addr())
		} else if !strings.Contains(err.Error(), "the path of the socket is missing") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	tcp, err := qmp.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
}

// A page that a browser shows can have it send anything to an address of this host.
func TestABrowserOrdersNothing(t *testing.T) {
	l, err := qmp.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h, s := newHost()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	const orders = `{"execute":"qmp_capabilities"}{"execute":"stop"}{"execute":"quit"}`
	say := func(all string) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, all)
		io.Copy(io.Discard, conn) // it is closed, perhaps with what it has sent
	}
	for _, method := range []string{"POST", "GET", "HEAD", "OPTIONS"} {
		say(fmt.Sprintf("%s / HTTP/1.1\r\nHost: %v\r\nUser-Agent: Mozilla/5.0\r\nContent-Length: %d\r\n\r\n%s", method, l.Addr(), len(orders), orders))
		if h.quits > 0 || h.RunState() != "running" {
			t.Fatalf("by %s a page has ordered what it likes", method)
		}
	}
	// A client that begins much like one of the four is a client.
	say("POS\n" + orders)
	cancel()
	<-done
	if h.quits != 1 || h.RunState() != "paused" {
		t.Errorf("%d clients have ended the host, which is %s", h.quits, h.RunState())
	}
}

// Whatever a client sends, it gets lines of ASCII with an answer each, and the
// server goes on.
func FuzzServer(f *testing.F) {
	f.Add([]byte(`{"execute":"query-jobs","id":[1]}`), []byte{0, 1, 2})
	f.Add([]byte(`{"exec-oob":"query-yank"}`), []byte{3, 4, 5, 0, 1, 6})
	for i, in := range malformed() {
		if i%7 == 0 && len(in) < 200 {
			f.Add([]byte(in), []byte{byte(i)})
		}
	}
	commands := []string{`{"execute":"qmp_capabilities"}`, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`, `{"execute":"stop"}`, `{"exec-oob":"query-yank","id":1}`,
		`{"execute":"cont"}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-colo","state":`, `true}]}}`, `{"execute":"echo","arguments":{"id":1}}`,
		`{"execute":"xen-set-replication","arguments":{"enable":`, `{"execute":"query-qmp-schema"}`, "}", "]", "\n", "\xff", `"`}
	f.Fuzz(func(t *testing.T, in, choice []byte) {
		_, s := newHost()
		s.MaxValue = 1 << 16
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); s.ServeConn(context.Background(), far) }()
		go func() {
			for _, c := range choice {
				io.WriteString(near, commands[int(c)%len(commands)])
			}
			near.Write(in)
			io.WriteString(near, "\xff\n"+`{"execute":"qmp_capabilities","id":"fuzz-end"}`)
		}()
		r := bufio.NewReader(near)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				if bytes.Contains(in, []byte("quit")) || len(choice) == 0 && bytes.ContainsAny(in, "GHPO") {
					break // or it has begun as a browser does
				}
				t.Fatalf("%q: %q, %v", in, line, err)
			}
			if !strings.HasSuffix(line, "\r\n") || strings.ContainsFunc(line[:len(line)-2], func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%q: %q", in, line)
			}
			if strings.Contains(line, `"id": "fuzz-end"`) || strings.Contains(line, `{"id": "fuzz-end"`) {
				break
			}
		}
		near.Close()
		<-done
	})
}

// A listener whose Close takes its time is closed when Serve returns.
func TestServeReturnsWhenItsListenerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := socket.NewLingering()
		time.AfterFunc(time.Minute, cancel)
		if err := new(qmp.Server).Serve(ctx, l); err == nil || !l.Closed() {
			t.Errorf("%v; closed: %v", err, l.Closed())
		}
	})
}
