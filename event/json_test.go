package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the files under testdata")

func compact(t *testing.T, line []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, line); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The lines of this file are in the form that QEMU 7.2.22 prints on its
// monitor; COLO_EXIT, STOP, SHUTDOWN and QUORUM_REPORT_BAD were printed by it.
func TestQEMULinesSurviveDecodeAndEncode(t *testing.T) {
	file, err := os.ReadFile("testdata/qemu-7.2.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(file) {
		crlf := append(bytes.TrimSpace(bytes.Clone(line)), "\r\n"...) // as the monitor ends its lines
		r, err := event.Decode(crlf)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		got, err := json.Marshal(r)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if want := compact(t, line); string(got) != want {
			t.Errorf("encoded again, order and all:\ngot  %s\nwant %s", got, want)
		}
	}
}

func records() []event.Record {
	at := time.Unix(1795170336, 804038999) // QMP has microseconds, the rest is cut
	all := []event.Event{
		event.COLOExit{Mode: event.ModeSecondary, Reason: event.ExitRequest},
		event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitError, Error: "Connection reset by peer"},
		event.COLOExit{},
		event.Stop{},
		event.Resume{},
		event.Migration{Status: event.MigrationCOLO},
		event.MigrationPass{Pass: 3},
		event.CheckpointStart{Mode: event.ModePrimary, Epoch: 0, Cause: event.CauseInitial},
		event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 1 << 63, Cause: event.CauseDivergence, Pages: 64,
			Bytes: 266240, PauseNS: 412000, TransferNS: 1200000, CommitNS: 90000, EarlyResume: true},
		event.FailoverDone{Mode: event.ModeSecondary, Epoch: 7, Status: "completed"},
		event.DiskBroken{Mode: event.ModePrimary, Disk: "disk0", Operation: "write", Offset: 1 << 40, Length: 4096, Error: "no space left on device"},
		event.DiskBroken{Mode: event.ModeSecondary, Operation: "connection", Error: "EOF"},
		event.DiskFailed{Mode: event.ModePrimary, Disk: "disk0", Operation: "flush", Error: "input/output error"},
		event.DiskStalled{Mode: event.ModeSecondary, Guest: "db1", Disk: "disk0", Host: "b", Operation: "generation", WaitedNS: 10000000000},
		event.DiskStalled{Mode: event.ModePrimary, Disk: "disk0", Operation: "flush", WaitedNS: 12345678901, Ended: true},
		event.DiskSyncProgress{Disk: "disk0", Phase: event.SyncCopy, Total: 1 << 30, Copied: 1 << 20, Same: 1 << 21,
			Remaining: 1<<30 - 3<<20, Rate: 350 << 20, ElapsedNS: 8_571_428},
		event.DiskSynchronised{Disk: "disk0", Copied: 1 << 28, Same: 3 << 28, ElapsedNS: 2_900_000_000},
		event.DiskResynchronised{Disk: "disk0", Copied: 65536, ElapsedNS: 1_000_000},
		event.DiskOverlayHalfFull{Disk: "disk0", Overlay: "hidden", Epoch: 12, Bytes: 1 << 27, Bound: 1 << 28},
		event.Arbitration{Mode: event.ModePrimary, Epoch: 7, Ordered: true, Answer: event.ArbiterRefused, Error: "the secondary goes on"},
		event.HeartbeatLost{Mode: event.ModeSecondary, Epoch: 7, Error: "heartbeat: peer lost"},
		event.ProtectionRefused{Mode: event.ModePrimary, Error: "no device of that name"},
		event.ProtectionEnded{Mode: event.ModePrimary, By: event.ModeSecondary, Epoch: 7, Reason: "maintenance"},
		event.GuestTorn{Mode: event.ModeSecondary, Epoch: 8, Error: "disks: no space left on device"},
		event.OutputStalled{Mode: event.ModePrimary, Epoch: 9, AgeNS: 5_000_000_000, Step: "expect vmstate-received"},
		event.Throttled{Mode: event.ModePrimary, Percent: 20},
		event.DiskOverlayFull{Mode: event.ModePrimary, Disk: "disk0", Overlay: "hidden", Epoch: 12, Bytes: 1 << 28, Bound: 1 << 28},
		event.DiskVerified{Disk: "disk0", Compared: 1 << 30, Different: 65536, Repaired: 65536, Undecided: 131072, ElapsedNS: 2_000_000_000},
		event.NetworkDiverged{Flow: event.Flow{Source: "10.0.0.1:443", Destination: "10.0.0.2:40000", Protocol: 6}, Reason: "data", Omitted: 3},
		event.NetworkFlowApart{Flow: event.Flow{Source: "10.0.0.1:443", Destination: "10.0.0.2:40000", Protocol: 6, VLAN: 5}, Reason: "data", RetryNS: 10_000_000_000},
		event.NetworkFlowTogether{Flow: event.Flow{Source: "[fd00::1]:22", Destination: "[fd00::2]:40000", Protocol: 6}},
		event.Unknown{Event: "DUMP_COMPLETED", Data: json.RawMessage(`{"result":{}}`)},
		event.Unknown{Event: "VFU_CLIENT_HANGUP"},
	}
	var rs []event.Record
	for _, e := range all {
		rs = append(rs, event.Record{Time: at, Event: e})
	}
	return rs
}

func TestEachEventHasItsGoldenLine(t *testing.T) {
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	for _, r := range records() {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	const name = "testdata/events.jsonl"
	if *update {
		if err := os.WriteFile(name, got.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("lines differ (-want +got):\n%s", d)
	}
}

func TestDecodeGivesBackWhatWasEncoded(t *testing.T) {
	for _, r := range records() {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var got event.Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		want := r
		want.Time = r.Time.Truncate(time.Microsecond)
		if e, ok := want.Event.(event.COLOExit); ok && e == (event.COLOExit{}) {
			want.Event = event.COLOExit{Mode: event.ModeNone, Reason: event.ExitNone}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", line, d)
		}
	}
}

func TestTheRestOfASynchronisationTakesAsLongAsItsRateSays(t *testing.T) {
	p := event.DiskSyncProgress{Remaining: 300 << 20, Rate: 100 << 20}
	if got := p.Left(); got != 3*time.Second {
		t.Errorf("%v left, want 3s", got)
	}
	if got := (event.DiskSyncProgress{Remaining: 1}).Left(); got != 0 {
		t.Errorf("%v left at an unknown rate, want 0: not known", got)
	}
}

func TestOlderSpellingsOfCOLOExitAreUnderstood(t *testing.T) {
	for _, c := range []struct {
		why, line string
		want      event.COLOExit
	}{
		{"the first proposals had an error text",
			`{"timestamp": {"seconds": 1368697518, "microseconds": 326866}, "event": "COLO_EXIT", "data": {"mode": "primary", "reason": "error", "error": "Broken pipe"}}`,
			event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitError, Error: "Broken pipe"}},
		{"none was once called unknown",
			`{"event": "COLO_EXIT", "data": {"mode": "unknown", "reason": "unknown"}, "timestamp": {"seconds": 1, "microseconds": 2}}`,
			event.COLOExit{Mode: event.ModeNone, Reason: event.ExitNone}},
		{"members that are not known are not needed, and a time stamp neither",
			`{"event": "COLO_EXIT", "data": {"mode": "secondary", "reason": "request", "more": [1]}}`,
			event.COLOExit{Mode: event.ModeSecondary, Reason: event.ExitRequest}},
	} {
		r, err := event.Decode([]byte(c.line))
		if err != nil {
			t.Errorf("%s: %v", c.why, err)
			continue
		}
		if d := cmp.Diff(event.Event(c.want), r.Event); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.why, d)
		}
	}
}

func TestDecodeRefusesWhatIsNoEvent(t *testing.T) {
	for _, line := range []string{
		`{"QMP": {"version": {}, "capabilities": ["oob"]}}`, `{"return": {}}`, `{}`, `{"event": ""}`, `{"event": null}`, `null`,
	} {
		if _, err := event.Decode([]byte(line)); !errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%s: %v, want ErrNotEvent", line, err)
		}
	}
	for _, line := range []string{``, `{`, `[]`, `{"event": 5}`, `{"event": "MIGRATION_PASS", "data": {"pass": "x"}}`} {
		if _, err := event.Decode([]byte(line)); err == nil || errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%q: %v, want an error of the decoder", line, err)
		}
	}
	for _, line := range []string{
		`{"event": "COLO_EXIT", "data": {"mode": "the third", "reason": "request"}}`,
		`{"event": "COLO_EXIT", "data": {"mode": "primary", "reason": ""}}`,
		`{"event": "CHECKPOINT_START", "data": {"cause": "a\u0000b"}}`,
		`{"event": "DISK_SYNC_PROGRESS", "data": {"phase": "über"}}`,
	} {
		var ee *event.EnumError
		if _, err := event.Decode([]byte(line)); !errors.As(err, &ee) {
			t.Errorf("%s: %v, want an EnumError", line, err)
		}
	}
}

func TestWordsOfANewerQEMUAreKept(t *testing.T) {
	for _, line := range []string{
		`{"timestamp":{"seconds":1,"microseconds":2},"event":"COLO_EXIT","data":{"mode":"third","reason":"because"}}`,
		`{"timestamp":{"seconds":1,"microseconds":2},"event":"CHECKPOINT_START","data":{"mode":"none","epoch":0,"cause":"moon-phase"}}`,
	} {
		r, err := event.Decode([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got, err := json.Marshal(r); err != nil || string(got) != line {
			t.Errorf("encoded again: %s, %v; want %s", got, err, line)
		}
	}
}

type overheated struct {
	Degrees int `json:"degrees"`
}

func (overheated) Name() string { return "OVERHEATED" }

func TestAHostsOwnEventsAreDecoded(t *testing.T) {
	at := time.Unix(7, 0)
	line, err := json.Marshal(event.Record{Time: at, Guest: "web", Event: overheated{90}})
	if err != nil {
		t.Fatal(err)
	}
	var d event.Decoder
	event.Register[overheated](&d)
	got, err := d.Decode(line)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(event.Record{Time: at, Guest: "web", Event: overheated{90}}, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", line, diff)
	}
	if r, err := event.Decode(line); err != nil || r.Event.(event.Unknown).Event != "OVERHEATED" {
		t.Errorf("without its type: %v, %v, want it as it came", r, err)
	}
	if r, err := d.Decode([]byte(`{"event":"STOP"}`)); err != nil || r.Event != (event.Stop{}) {
		t.Errorf("an event of this package: %v, %v", r, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range records() {
		line, _ := json.Marshal(r)
		f.Add(line)
	}
	f.Add([]byte(`{"event": "DISK_SYNC_PROGRESS", "data": {"disk": "disk0"}}`))
	for _, name := range []string{"qemu-7.2-said", "documents"} {
		file, err := os.ReadFile("testdata/" + name + ".jsonl")
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(file) {
			if _, in, ok := bytes.Cut(line, []byte(`"in":`)); ok {
				line = in[:bytes.LastIndex(in, []byte(`,"data":`))+1]
			}
			f.Add(bytes.TrimRight(line, ",\r\n"))
		}
	}
	var order event.Order
	var limiter event.Limiter
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := event.Decode(line)
		if err != nil {
			return
		}
		order.Check(r) // they take what comes
		limiter.Put(time.Unix(1, 0), r)
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("%q decodes to %#v, which does not encode: %v", line, r, err)
		}
		r2, err := event.Decode(again)
		if err != nil {
			t.Fatalf("%q encodes as %q, which does not decode: %v", line, again, err)
		}
		if third, _ := json.Marshal(r2); !bytes.Equal(again, third) {
			t.Fatalf("%q, then %q", again, third)
		}
	})
}
