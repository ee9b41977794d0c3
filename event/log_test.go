package event_test

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// plain returns a log without times, which keeps all levels.
func plain(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestALogSaysWhatAnOperatorNeedsToKnow(t *testing.T) {
	for _, c := range []struct {
		e    event.Event
		want string
	}{
		{event.COLOExit{Mode: event.ModeSecondary, Reason: event.ExitError, Error: "EOF"}, `level=WARN msg=COLO_EXIT guest=db1 side=secondary reason=error error=EOF`},
		{event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitRequest}, `level=INFO msg=COLO_EXIT guest=db1 side=primary reason=request`},
		{event.GuestTorn{Mode: event.ModeSecondary, Epoch: 7, Error: "disk"}, `level=ERROR msg=GUEST_TORN guest=db1 side=secondary checkpoint=7 error=disk`},
		{event.DiskBroken{Mode: event.ModePrimary, Operation: "connection", Error: "EOF"}, `level=WARN msg=DISK_BROKEN guest=db1 side=primary operation=connection offset=0 length=0 error=EOF`},
		{event.DiskBroken{Mode: event.ModeSecondary, Operation: "write", Length: 512, Error: "worn"}, `level=ERROR msg=DISK_BROKEN guest=db1 side=secondary operation=write offset=0 length=512 error=worn`},
		{event.HeartbeatLost{Mode: event.ModeSecondary, Error: "EOF"}, `level=INFO msg=HEARTBEAT_LOST guest=db1 side=secondary checkpoint=0 error=EOF`},
		{event.FailoverDone{Mode: event.ModeSecondary, Epoch: 7, Status: "completed"}, `level=INFO msg=FAILOVER guest=db1 side=secondary checkpoint=7 status=completed`},
		{event.OutputStalled{Mode: event.ModePrimary, Epoch: 3, AgeNS: int64(5 * time.Second), Step: "expect vmstate-received"}, `level=WARN msg=OUTPUT_STALLED guest=db1 side=primary checkpoint=3 age=5s step="expect vmstate-received"`},
		{event.Stop{}, `level=DEBUG msg=STOP guest=db1`},
		{event.NetworkDiverged{Flow: event.Flow{Source: "10.0.0.2:80", Destination: "10.0.0.1:4000", Protocol: 6}, Reason: "data"}, `level=DEBUG msg=NETWORK_DIVERGED guest=db1 flow="10.0.0.2:80 > 10.0.0.1:4000" reason=data`},
		{event.Arbitration{Mode: event.ModePrimary, Answer: event.ArbiterUnreachable, Error: "no route"}, `level=WARN msg=ARBITRATION guest=db1 side=primary checkpoint=0 ordered=false answer=unreachable error="no route"`},
		{event.Arbitration{Mode: event.ModeSecondary, Ordered: true, Answer: event.ArbiterRefused, Error: "generation 3 is over"}, `level=WARN msg=ARBITRATION guest=db1 side=secondary checkpoint=0 ordered=true answer=refused error="generation 3 is over"`},
		{event.Arbitration{Mode: event.ModePrimary, Epoch: 9, Ordered: true, Answer: event.ArbiterRefused, Error: "failover: arbiter refused: switchover", Released: true}, `level=DEBUG msg=ARBITRATION guest=db1 side=primary checkpoint=9 ordered=true answer=refused error="failover: arbiter refused: switchover" released=true`},
		{event.Arbitration{Mode: event.ModeSecondary, Epoch: 9, Ordered: true, Answer: event.ArbiterAsked, Error: "a leaves"}, `level=DEBUG msg=ARBITRATION guest=db1 side=secondary checkpoint=9 ordered=true answer=asked error="a leaves"`},
		{event.Arbitration{Mode: event.ModeSecondary, Epoch: 9, Answer: event.ArbiterAsked, Error: "EOF"}, `level=INFO msg=ARBITRATION guest=db1 side=secondary checkpoint=9 ordered=false answer=asked error=EOF`},
	} {
		var b bytes.Buffer
		event.Log(plain(&b), event.Record{Guest: "db1", Event: c.e})
		if got := strings.TrimSpace(b.String()); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// Every event can be logged, whatever its members, and names its side.
func TestEveryEventCanBeLogged(t *testing.T) {
	for name, typ := range event.Types() {
		var b bytes.Buffer
		e := reflect.New(typ).Elem().Interface().(event.Event)
		event.Log(plain(&b), event.Record{Event: e})
		if !strings.Contains(b.String(), "msg="+name) {
			t.Errorf("%s: %s", name, b.String())
		}
		if _, ok := typ.FieldByName("Mode"); ok && !strings.Contains(b.String(), "side=none") {
			t.Errorf("%s does not name its side: %s", name, b.String())
		}
	}
}

func TestAnEventThatNobodyLogsCostsNothing(t *testing.T) {
	quiet := slog.New(slog.NewTextHandler(new(bytes.Buffer), nil))
	r := event.Record{Event: event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 9}}
	for name, l := range map[string]*slog.Logger{"no logger": nil, "a level that is not kept": quiet} {
		if n := testing.AllocsPerRun(100, func() { event.Log(l, r) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
