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
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// A QEMU 7.2.22 whose command was blocked, with out-of-band execution enabled,
// has been measured: with 7 more queued another one out of band is answered at
// once, with 8 it waits until one is taken off the queue.
func TestOutOfBandCommandsOvertakeUpToSevenThatWait(t *testing.T) {
	for _, c := range []struct {
		queued int
		want   string // the answers' ids in their order; | is where the one that blocks is let go
	}{
		{7, "oob | 0 1 2 3 4 5 6 7"},
		{8, "| 0 oob 1 2 3 4 5 6 7 8"},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, s := newHost()
			release := make(chan struct{})
			qmp.Register(s.Commands, "block", func(context.Context, qmp.None) (qmp.None, error) {
				<-release
				return qmp.None{}, nil
			})
			// Each of the others takes as long as a QEMU needs to read on.
			qmp.Register(s.Commands, "brief", func(context.Context, qmp.None) (qmp.None, error) {
				time.Sleep(time.Second)
				return qmp.None{}, nil
			})
			conn, r, end := attach(t, s)
			defer end()
			r.ReadString('\n')
			say(t, conn, r, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`)
			var in strings.Builder
			in.WriteString(`{"execute":"block","id":0}`)
			for i := range c.queued {
				fmt.Fprintf(&in, `{"execute":"brief","id":%d}`, i+1)
			}
			in.WriteString(`{"exec-oob":"query-yank","id":"oob"}`)
			go io.WriteString(conn, in.String())
			var mu sync.Mutex
			var got []string
			go func() {
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					var a struct{ ID any }
					json.Unmarshal([]byte(line), &a)
					mu.Lock()
					got = append(got, fmt.Sprint(a.ID))
					mu.Unlock()
				}
			}()
			time.Sleep(time.Hour)
			synctest.Wait()
			mu.Lock()
			got = append(got, "|")
			mu.Unlock()
			close(release)
			time.Sleep(time.Hour)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%d queued: got %s, want %s", c.queued, s, c.want)
			}
		})
	}
}

func TestWithoutOutOfBandNothingIsReadWhileACommandRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		release := make(chan struct{})
		qmp.Register(s.Commands, "block", func(context.Context, qmp.None) (qmp.None, error) {
			<-release
			return qmp.None{}, nil
		})
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		io.WriteString(conn, `{"execute":"block"}`)
		wrote := false
		go func() { io.WriteString(conn, `{"execute":"query-name","id":1}`); wrote = true }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if wrote {
			t.Error("the next command was read")
		}
		close(release)
		for _, want := range []string{`{"return": {}}`, `{"return": {}, "id": 1}`} {
			if got, err := r.ReadString('\n'); strings.TrimSpace(got) != want {
				t.Errorf("%q, %v, want %s", got, err, want)
			}
		}
	})
}

func TestOutOfBandIsOfferedOnlyWhereACommandAllowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, r, end := attach(t, &qmp.Server{})
		defer end()
		if hello, _ := r.ReadString('\n'); !strings.Contains(hello, `"capabilities": []`) {
			t.Error(hello)
		}
		if got := say(t, conn, r, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`); !strings.Contains(got, "Capability oob is not available") {
			t.Error(got)
		}
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		if got := say(t, conn, r, `{"execute":"quit"}`); !strings.Contains(got, "The command quit has not been found") {
			t.Errorf("nobody can be quit: %s", got)
		}
		if got, want := say(t, conn, r, `{"execute":"query-commands"}`),
			`{"return": [{"name": "qmp_capabilities"}, {"name": "query-commands"}, {"name": "query-events"}, {"name": "query-qmp-schema"}, {"name": "query-version"}]}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

type job struct {
	status event.JobStatus
	asked  []string
}

func (j *job) ID() string                       { return "j" }
func (j *job) Type() event.JobType              { return event.JobProtect }
func (j *job) Status() event.JobStatus          { return j.status }
func (j *job) Progress() (current, total int64) { return 3, 4 }
func (j *job) Err() error                       { return errors.New("why") }
func (j *job) ask(verb string) error            { j.asked = append(j.asked, verb); return nil }
func (j *job) Pause(context.Context) error      { return j.ask("pause") }
func (j *job) Resume(context.Context) error     { return j.ask("resume") }
func (j *job) Cancel(context.Context) error     { return j.ask("cancel") }
func (j *job) Complete(context.Context) error   { return j.ask("complete") }
func (j *job) Finalize(context.Context) error   { return j.ask("finalize") }
func (j *job) Dismiss(context.Context) error    { return j.ask("dismiss") }

// The table was measured with jobs of a QEMU 7.2.22.
func TestJobsAreAskedForWhatTheirStatusAllows(t *testing.T) {
	verbs := []string{"pause", "resume", "cancel", "complete", "finalize", "dismiss"}
	allowed := map[event.JobStatus]string{
		event.JobRunning: "pause cancel", event.JobPaused: "resume cancel", event.JobReady: "pause cancel complete",
		event.JobStandby: "resume cancel complete", event.JobPending: "cancel finalize", event.JobConcluded: "dismiss",
		event.JobAborting: "",
	}
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		j := &job{}
		h.jobs = []qmp.Job{j}
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		for status, may := range allowed {
			for _, verb := range verbs {
				j.status, j.asked = status, nil
				got := say(t, conn, r, `{"execute":"job-`+verb+`","arguments":{"id":"j"}}`)
				want, asked := `{"return": {}}`, []string{verb}
				if !slices.Contains(strings.Fields(may), verb) {
					text := fmt.Sprintf("Job 'j' in state '%s' cannot accept command verb '%s'", status, verb)
					switch {
					case verb == "resume":
						text = "Can't resume a job that was not paused"
					case verb == "pause" && (status == event.JobPaused || status == event.JobStandby):
						text = "Job is already paused"
					}
					want, asked = `{"error": {"class": "GenericError", "desc": "`+text+`"}}`, nil
				}
				if got != want || !slices.Equal(j.asked, asked) {
					t.Errorf("%s in %s: %s, asked %v; want %s", verb, status, got, j.asked, want)
				}
			}
		}
		j.status = event.JobReady
		if got, want := say(t, conn, r, `{"execute":"query-jobs"}`), `{"return": [{"current-progress": 3, "status": "ready", "total-progress": 4, "type": "protect", "id": "j", "error": "why"}]}`; !sameMembers(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func sameMembers(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	xx, _ := json.Marshal(x)
	yy, _ := json.Marshal(y)
	return bytes.Equal(xx, yy)
}

type colour string

func (colour) Words() []string { return []string{"red", "blue"} }

type paint struct {
	Colour  colour    `json:"colour"`
	Coats   *uint8    `json:"coats"`
	Depth   int16     `json:"depth,omitempty"`
	Share   float64   `json:"share,omitzero"`
	Parts   []string  `json:"parts,omitempty"`
	Palette []colour  `json:"palette,omitempty"`
	Extra   any       `json:"extra,omitempty"`
	Lid     *struct{} `json:"lid"`
}

func TestTypedArgumentsOfAHostsOwnCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c qmp.Commands
		qmp.Register(&c, "paint", func(_ context.Context, p paint) (paint, error) { return p, nil })
		qmp.Register(&c, "fail", func(context.Context, qmp.None) (qmp.None, error) {
			return qmp.None{}, fmt.Errorf("wrapped: %w", &qmp.Error{Class: qmp.DeviceNotActive, Desc: "it is not"})
		})
		conn, r, end := attach(t, &qmp.Server{Commands: &c})
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		for _, x := range []struct{ args, want string }{
			{`{"colour":"red"}`, `{"return":{"coats":null,"colour":"red","lid":null}}`},
			{`{"colour":"red","coats":255,"depth":-32768,"share":1,"parts":["a"],"palette":["blue"],"extra":{"x":[1.5]},"lid":{}}`,
				`{"return":{"colour":"red","coats":255,"depth":-32768,"share":1,"parts":["a"],"palette":["blue"],"extra":{"x":[1.5]},"lid":{}}}`},
			{`{}`, "Parameter 'colour' is missing"},
			{`{"colour":"green"}`, "Parameter 'colour' does not accept value 'green'"},
			{`{"colour":1}`, "Invalid parameter type for 'colour', expected: string"},
			{`{"colour":"red","coats":256}`, "Parameter 'coats' expects uint8_t"},
			{`{"colour":"red","coats":-1}`, "Parameter 'coats' expects uint8_t"},
			{`{"colour":"red","depth":32768}`, "Parameter 'depth' expects int16_t"},
			{`{"colour":"red","depth":1.0}`, "Invalid parameter type for 'depth', expected: integer"},
			{`{"colour":"red","share":"1"}`, "Invalid parameter type for 'share', expected: number"},
			{`{"colour":"red","parts":[1]}`, "Invalid parameter type for 'parts[0]', expected: string"},
			{`{"colour":"red","palette":["red","x"]}`, "Parameter 'null' does not accept value 'x'"},
			{`{"colour":"red","lid":{"y":1}}`, "Parameter 'lid.y' is unexpected"},
			{`{"colour":"red","Coats":1}`, "Parameter 'Coats' is unexpected"},
		} {
			got := say(t, conn, r, `{"execute":"paint","arguments":`+x.args+`}`)
			if x.want[0] != '{' {
				x.want = `{"error": {"class": "GenericError", "desc": "` + x.want + `"}}`
			}
			if !sameMembers(got, x.want) {
				t.Errorf("%s: got %s, want %s", x.args, got, x.want)
			}
		}
		if got, want := say(t, conn, r, `{"execute":"fail"}`), `{"error": {"class": "DeviceNotActive", "desc": "it is not"}}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		names := say(t, conn, r, `{"execute":"query-commands"}`)
		if !strings.Contains(names, `{"name": "paint"}`) {
			t.Errorf("paint is not in %s", names)
		}
		checkSchema(t, say(t, conn, r, `{"execute":"query-qmp-schema"}`), names)
	})
}

// A host's parameters are beside QEMU's, and have their place in the schema.
func TestAHostsOwnParametersAreBesideQEMUs(t *testing.T) {
	type parameters struct {
		qmp.MigrationParameters
		LeastDelay *uint32 `json:"x-least-delay,omitempty"`
	}
	synctest.Test(t, func(t *testing.T) {
		var c qmp.Commands
		var have parameters
		qmp.RegisterParameters(&c, func() parameters { return have }, func(_ context.Context, p parameters) error {
			have = p
			return nil
		})
		conn, r, end := attach(t, &qmp.Server{Commands: &c})
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		for _, x := range []struct{ command, want string }{
			{`{"execute":"migrate-set-parameters","arguments":{"x-least-delay":5,"x-checkpoint-delay":100}}`, `{"return": {}}`},
			{`{"execute":"query-migrate-parameters"}`, `{"return": {"x-checkpoint-delay": 100, "x-least-delay": 5}}`},
			{`{"execute":"migrate-set-parameters","arguments":{"x-least-delay":-5}}`, `{"error": {"class": "GenericError", "desc": "Parameter 'x-least-delay' expects uint32_t"}}`},
			{`{"execute":"migrate-set-parameters","arguments":{"x-most-delay":5}}`, `{"error": {"class": "GenericError", "desc": "Parameter 'x-most-delay' is unexpected"}}`},
		} {
			if got := say(t, conn, r, x.command); !sameMembers(got, x.want) {
				t.Errorf("%s: got %s, want %s", x.command, got, x.want)
			}
		}
		if s := say(t, conn, r, `{"execute":"query-qmp-schema"}`); strings.Count(s, `"x-least-delay"`) == 0 || strings.Count(s, `"x-least-delay"`) != strings.Count(s, `"x-checkpoint-delay"`) {
			t.Errorf("the schema has one and not the other: %s", s)
		}
	})
}

type tree struct {
	Name     string `json:"name"`
	Branches []tree `json:"branches,omitempty"`
}

// What an argument is made of may have itself as a part. What cannot be decoded is a fault
// of the program, which it hears of before any client does.
func TestAnArgumentMayBeATree(t *testing.T) {
	var c qmp.Commands
	qmp.Register(&c, "plant", func(_ context.Context, a tree) (json.RawMessage, error) {
		return json.Marshal(a)
	})
	addr := listen(t, &qmp.Server{Commands: &c})
	const oak = `{"branches":[{"branches":[{"name":"c"}],"name":"b"}],"name":"a"}`
	got, err := answers(addr, true, `{"execute":"plant","arguments":`+oak+`}{"execute":"plant","arguments":{"name":"a","branches":[{"name":"b","branches":[{}]}]}}`)
	if err != nil || len(got) < 2 {
		t.Fatal(got, err)
	}
	if !sameMembers(got[0], `{"return":`+oak+`}`) || !strings.Contains(got[1], "Parameter 'branches[0].branches[0].name' is missing") {
		t.Errorf("%q", got)
	}
	if s := schemaOf(t, addr); s.kind(s["command plant"].result) != "value" {
		t.Errorf("what answers JSON of its own is described as %s", s.kind(s["command plant"].result))
	}
	defer func() {
		if why := fmt.Sprint(recover()); !strings.Contains(why, "embeds a *qmp.MigrationParameters") {
			t.Error(why)
		}
	}()
	qmp.Register(&c, "bad", func(context.Context, struct{ *qmp.MigrationParameters }) (qmp.None, error) { return qmp.None{}, nil })
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
	l, err := qmp.Listen(filepath.Join(t.TempDir(), "s"))
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
	path := filepath.Join(t.TempDir(), "s")
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
	tcp, err := qmp.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
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
				if bytes.Contains(in, []byte("quit")) {
					break
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
