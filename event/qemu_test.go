package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

func lines(t *testing.T, file string) [][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(text), []byte("\n"))
}

// typed has the names of all events of QEMU that have a type.
var typed = strings.Fields(`ACPI_DEVICE_OST BALLOON_CHANGE BLOCK_IMAGE_CORRUPTED BLOCK_IO_ERROR
	BLOCK_JOB_CANCELLED BLOCK_JOB_COMPLETED BLOCK_JOB_ERROR BLOCK_JOB_PENDING BLOCK_JOB_READY COLO_EXIT
	DEVICE_DELETED DEVICE_TRAY_MOVED GUEST_CRASHLOADED GUEST_PANICKED JOB_STATUS_CHANGE MIGRATION
	MIGRATION_PASS NIC_RX_FILTER_CHANGED POWERDOWN QUORUM_FAILURE QUORUM_REPORT_BAD RESET RESUME RTC_CHANGE
	SHUTDOWN SPICE_CONNECTED SPICE_DISCONNECTED SPICE_INITIALIZED STOP SUSPEND SUSPEND_DISK VNC_CONNECTED
	VNC_DISCONNECTED VNC_INITIALIZED WAKEUP WATCHDOG`)

// The lines of this file were said by a QEMU 7.2.22 whose guest, disks, screens
// and jobs were made to give reasons: one of each form that was seen.
func TestWhatQEMUHasSaidIsTypedAndEncodesAsItSaidIt(t *testing.T) {
	seen := make(map[string]bool)
	for _, line := range lines(t, "qemu-7.2-said.jsonl") {
		r, err := event.Decode(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		seen[r.Event.Name()] = true
		if _, ok := r.Event.(event.Unknown); ok || r.Members != "" {
			t.Errorf("%s: %#v, members %s: it has no type for all of it", line, r.Event, r.Members)
		}
		if got, err := json.Marshal(r); err != nil || string(got) != compact(t, line) {
			t.Errorf("encoded again, order and all: %v\ngot  %s\nwant %s", err, got, line)
		}
	}
	for _, name := range typed {
		if !seen[name] && name != "COLO_EXIT" { // which qemu-7.2.jsonl has
			t.Errorf("there is no line of %s", name)
		}
	}
}

// The lines of this file have the forms that QEMU's documents have shown over
// time, from the list of events of 2010 to QAPI's schema of today.
func TestDocumentedFormsOldAndNewAreReadAsThoseOfToday(t *testing.T) {
	seen := make(map[string]bool)
	for _, line := range lines(t, "documents.jsonl") {
		var c struct {
			Why      string
			In, Data json.RawMessage
		}
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		r, err := event.Decode(c.In)
		if err != nil {
			t.Errorf("%s: %v", c.In, err)
			continue
		}
		seen[r.Event.Name()] = true
		if _, ok := r.Event.(event.Unknown); ok {
			t.Errorf("%s: it has no type", c.In)
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Errorf("%s: %v", c.In, err)
			continue
		}
		var got struct{ Data json.RawMessage }
		if err := json.Unmarshal(text, &got); err != nil || string(got.Data) != string(c.Data) {
			t.Errorf("%s (%s)\ngot  %s\nwant %s", c.In, c.Why, got.Data, c.Data)
		}
		again, err := event.Decode(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if second, _ := json.Marshal(again); !bytes.Equal(second, text) {
			t.Errorf("encoded %s, and again %s", text, second)
		}
	}
	for _, name := range typed {
		switch name {
		case "POWERDOWN", "GUEST_CRASHLOADED", "BLOCK_JOB_PENDING": // not in the first documents
		default:
			if !seen[name] {
				t.Errorf("there is no line of %s", name)
			}
		}
	}
}

func TestMembersWithoutAFieldAreKept(t *testing.T) {
	for _, c := range []struct{ in, members, out string }{
		{`{"event":"STOP","data":{"why":[1]}}`, `{"why":[1]}`, `{"why":[1]}`},
		{`{"event":"WATCHDOG","data":{"more":{},"action":"pause","Action":"x"}}`, `{"Action":"x","more":{}}`, `{"action":"pause","Action":"x","more":{}}`},
		{`{"event":"VNC_CONNECTED","data":{"server":{"family":"ipv4","service":"1","host":"h","websocket":false,"tls":true},"client":{"family":"ipv4","service":"2","host":"c","websocket":false}}}`,
			`{"server":{"tls":true}}`,
			`{"server":{"family":"ipv4","service":"1","host":"h","websocket":false,"tls":true},"client":{"family":"ipv4","service":"2","host":"c","websocket":false}}`},
		{`{"event":"GUEST_PANICKED","data":{"action":"run","info":{"type":"s390","core":1,"psw-mask":2,"psw-addr":3,"reason":"unknown","x":null}}}`,
			`{"info":{"x":null}}`, `{"action":"run","info":{"type":"s390","core":1,"psw-mask":2,"psw-addr":3,"reason":"unknown","x":null}}`},
		{`{"event":"CHECKPOINT_START","data":{"mode":"primary","epoch":1,"later":2}}`, `{"later":2}`, `{"mode":"primary","epoch":1,"later":2}`},
	} {
		r, err := event.Decode([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if string(r.Members) != c.members {
			t.Errorf("%s: members %s, want %s", c.in, r.Members, c.members)
		}
		var got struct{ Data json.RawMessage }
		text, err := json.Marshal(r)
		if err != nil || json.Unmarshal(text, &got) != nil || string(got.Data) != c.out {
			t.Errorf("%s encodes as %s, %v; want the data %s", c.in, text, err, c.out)
		}
	}
	if m := event.Members(`{"a":1}`).Map(); string(m["a"]) != "1" {
		t.Errorf("%v", m)
	}
	if _, err := json.Marshal(event.Record{Event: event.Stop{}, Members: "x"}); err == nil {
		t.Error("members that are no object are encoded")
	}
}

// Each sequence is what a QEMU 7.2.22 has said about one thing that was done to
// it, in the order of arrival.
func TestWhatQEMUHasSaidIsInOrder(t *testing.T) {
	for _, line := range lines(t, "qemu-7.2-sequences.jsonl") {
		var s struct {
			How, After string
			Lines      []string
		}
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		var o event.Order
		for _, l := range s.Lines {
			r, err := event.Decode([]byte(l))
			if err != nil {
				t.Fatal(err)
			}
			if err := o.Check(r); err != nil {
				t.Errorf("%s (after %s): %s: %v", s.How, s.After, l, err)
			}
		}
		if err := o.End(); err != nil {
			t.Errorf("%s (after %s): %v", s.How, s.After, err)
		}
	}
}

func TestOrder(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	watchdog := func(a event.WatchdogAction) event.Event { return event.Watchdog{Action: a} }
	job := func(s event.JobStatus) event.Event { return event.JobStatusChange{ID: "j", Status: s} }
	ready, failed := event.BlockJobReady{Device: "j"}, event.BlockJobError{Device: "j", Action: event.IOStop}
	completed, cancelled := event.BlockJobCompleted{Device: "j"}, event.BlockJobCancelled{Device: "j"}
	stops := event.BlockIOError{Action: event.IOStop}
	migration := func(s event.MigrationStatus) event.Event { return event.Migration{Status: s} }
	vnc := event.VNCClient{Family: "ipv4", Host: "h", Service: "1"}
	unix := event.VNCClient{Family: "unix"}
	for _, c := range []struct {
		what string
		said []event.Event
		want string // the events that are out of order, then "end" if something is missing
	}{
		{"a pair", []event.Event{event.Stop{}, event.Resume{}, event.Stop{}}, ""},
		{"two stops", []event.Event{event.Stop{}, event.Stop{}}, "STOP"},
		{"two resumes", []event.Event{event.Resume{}, event.Resume{}}, "RESUME"},
		{"a sleeper that is reset", []event.Event{event.Resume{}, event.Suspend{}, event.Reset{}, event.Resume{}}, ""},
		{"a sleeper that wakes", []event.Event{event.Suspend{}, event.Wakeup{}, event.Wakeup{}}, "WAKEUP"},
		{"a sleeper that falls asleep", []event.Event{event.Suspend{}, event.Suspend{}}, "SUSPEND"},
		{"an error that stops", []event.Event{stops, stops, event.Stop{}, stops}, ""},
		{"an error that does not", []event.Event{stops}, "end"},
		{"an error that resumes", []event.Event{stops, event.Resume{}}, "RESUME"},
		{"an error that is reported", []event.Event{event.BlockIOError{Action: event.IOReport}}, ""},
		{"watchdog: reset", []event.Event{watchdog("reset"), event.Reset{}}, ""},
		{"watchdog: no reset", []event.Event{watchdog("reset"), event.Stop{}}, "end"},
		{"watchdog: powerdown", []event.Event{watchdog("shutdown"), event.Powerdown{}}, ""},
		{"watchdog: shutdown", []event.Event{watchdog("shutdown"), event.Shutdown{}}, ""},
		{"watchdog: nothing", []event.Event{watchdog("shutdown")}, "end"},
		{"watchdog: pause", []event.Event{watchdog("pause"), event.Stop{}}, ""},
		{"watchdog: no pause", []event.Event{watchdog("pause"), event.Reset{}}, "end"},
		{"watchdog: others", []event.Event{watchdog("poweroff"), watchdog("none"), watchdog("inject-nmi")}, ""},
		{"panic: pause", []event.Event{event.GuestPanicked{Action: "pause"}}, "end"},
		{"panic: poweroff", []event.Event{event.GuestPanicked{Action: "poweroff"}}, "end"},
		{"panic: run", []event.Event{event.GuestPanicked{Action: "run"}}, ""},
		{"sleep on disk", []event.Event{event.SuspendDisk{}, event.Shutdown{}, event.Stop{}}, ""},
		{"no sleep on disk", []event.Event{event.SuspendDisk{}}, "end"},
		{"the end pays for all", []event.Event{stops, watchdog("reset"), event.Shutdown{}}, ""},
		{"a job", []event.Event{job("created"), job("running"), job("ready"), ready, job("waiting"), job("pending"), completed, job("concluded"), job("null"), job("created")}, ""},
		{"a job that jumps", []event.Event{job("created"), job("ready")}, "JOB_STATUS_CHANGE"},
		{"a job that comes back", []event.Event{job("concluded"), job("running")}, "JOB_STATUS_CHANGE"},
		{"a status of a newer one", []event.Event{job("running"), job("dancing"), job("running")}, ""},
		{"ready twice", []event.Event{ready, ready}, "BLOCK_JOB_READY"},
		{"ready again", []event.Event{ready, failed, ready}, ""},
		{"ready too early", []event.Event{job("running"), ready}, "BLOCK_JOB_READY"},
		{"completed too early", []event.Event{job("running"), completed}, "BLOCK_JOB_COMPLETED"},
		{"cancelled while pending", []event.Event{job("pending"), cancelled}, "BLOCK_JOB_CANCELLED"},
		{"ended twice", []event.Event{job("aborting"), completed, cancelled}, "BLOCK_JOB_CANCELLED"},
		{"an error after the end", []event.Event{job("aborting"), completed, failed}, "BLOCK_JOB_ERROR"},
		{"pending, but running", []event.Event{job("running"), event.BlockJobPending{ID: "j"}}, "BLOCK_JOB_PENDING"},
		{"a migration", []event.Event{migration("setup"), event.MigrationPass{Pass: 1}, migration("active"), event.MigrationPass{Pass: 2}, migration("completed"), migration("setup"), event.MigrationPass{Pass: 1}}, ""},
		{"a pass twice", []event.Event{event.MigrationPass{Pass: 2}, event.MigrationPass{Pass: 2}}, "MIGRATION_PASS"},
		{"a pass after the end", []event.Event{migration("failed"), event.MigrationPass{Pass: 2}}, "MIGRATION_PASS"},
		{"a beginning in the middle", []event.Event{migration("active"), migration("setup")}, "MIGRATION"},
		{"a middle after the end", []event.Event{migration("cancelled"), migration("active")}, "MIGRATION"},
		{"cancelled by nobody", []event.Event{migration("active"), migration("cancelled")}, "MIGRATION"},
		{"two ends of a session", []event.Event{migration("colo"), event.COLOExit{}, event.COLOExit{}}, "COLO_EXIT"},
		{"two sessions", []event.Event{migration("colo"), event.COLOExit{}, migration("completed"), migration("setup"), migration("colo"), event.COLOExit{}}, ""},
		{"a client", []event.Event{event.VNCConnected{Client: vnc}, event.VNCInitialized{Client: vnc}, event.VNCDisconnected{Client: vnc}, event.VNCConnected{Client: vnc}}, ""},
		{"a client twice", []event.Event{event.VNCConnected{Client: vnc}, event.VNCConnected{Client: vnc}}, "VNC_CONNECTED"},
		{"initialized twice", []event.Event{event.VNCConnected{Client: vnc}, event.VNCInitialized{Client: vnc}, event.VNCInitialized{Client: vnc}}, "VNC_INITIALIZED"},
		{"clients without an address", []event.Event{event.VNCConnected{Client: unix}, event.VNCConnected{Client: unix}}, ""},
	} {
		var o event.Order
		var got []string
		for i, e := range c.said {
			if err := o.Check(event.Record{Time: at(i), Event: e}); err != nil {
				var oe *event.OrderError
				if !errors.As(err, &oe) {
					t.Fatalf("%T", err)
				}
				got = append(got, oe.Event)
			}
		}
		if o.End() != nil {
			got = append(got, "end")
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: out of order is %q, want %q", c.what, s, c.want)
		}
	}

	var late event.Order // the watchdog's event was kept back, what it leads to was not
	for _, r := range []event.Record{{Time: at(5), Event: event.Reset{}}, {Time: at(4), Event: event.Watchdog{Action: event.WatchdogReset}}} {
		if err := late.Check(r); err != nil {
			t.Error(err)
		}
	}
	if err := late.End(); err != nil {
		t.Errorf("a late WATCHDOG: %v", err)
	}
}

func TestAJobIsReadyUntilAnErrorOrItsEnd(t *testing.T) {
	ready := event.BlockJobReady{Device: "j"}
	for _, end := range []event.Event{event.BlockJobError{Device: "j"}, event.BlockJobCompleted{Device: "j"},
		event.BlockJobCancelled{Device: "j"}, event.JobStatusChange{ID: "j", Status: event.JobAborting}} {
		var o event.Order
		if o.Ready("j") {
			t.Error("ready before anything was said")
		}
		o.Check(event.Record{Event: ready})
		if !o.Ready("j") || o.Ready("k") {
			t.Error("not ready, or another is")
		}
		o.Check(event.Record{Event: end})
		if o.Ready("j") {
			t.Errorf("ready after %s", end.Name())
		}
	}
}
