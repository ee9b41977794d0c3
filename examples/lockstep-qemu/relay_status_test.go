package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
)

// relayOf returns a relay of these secondaries that nobody has begun.
func relayOf(list ...*follower) *relayRun {
	r := &relayRun{secondaries: list}
	r.standbyRun = newStandby(standbyOptions{}, terminal{out: io.Discard, err: io.Discard})
	r.secondariesOf = r.secondaryStatuses
	return r
}

func TestARelaysStatusHasEachOfItsSecondaries(t *testing.T) {
	fails := &follower{addr: "unix:/run/away", why: "dial unix /run/away: connect: connection refused"}
	r := relayOf(&follower{addr: "a:1"}, fails, &follower{addr: "b:1", session: new(colo.Primary)},
		&follower{addr: "c:1", session: new(colo.Primary), synced: true, epoch: 7, why: "lost before"}, &follower{addr: "d:1", synced: true, epoch: 8, goesOn: true})
	text, err := json.Marshal(r.status())
	if err != nil {
		t.Fatal(err)
	}
	if want := `"secondaries":[{"address":"a:1","state":"idle","checkpoint":0},` +
		`{"address":"unix:/run/away","state":"away","checkpoint":0,"error":"dial unix /run/away: connect: connection refused"},` +
		`{"address":"b:1","state":"synchronising","checkpoint":0},{"address":"c:1","state":"following","checkpoint":7},` +
		`{"address":"d:1","state":"promoted","checkpoint":8}]`; !strings.Contains(string(text), want) {
		t.Errorf("%s\nwant %s", text, want)
	}
	var out bytes.Buffer
	sayStatus(&printer{terminal: terminal{out: &out}}, "standby", text)
	if want := `
  secondary   a:1 idle
  secondary   unix:/run/away away: dial unix /run/away: connect: connection refused
  secondary   b:1 synchronising
  secondary   c:1 following, checkpoint 7
  secondary   d:1 promoted, checkpoint 8
`; !strings.Contains(out.String(), want) {
		t.Errorf("%s\nwant %s", &out, want)
	}
	var set metrics.Set
	r.metrics(&set)
	var page bytes.Buffer
	if _, err := set.WriteTo(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`lockstep_standby_secondary_following{address="b:1"} 0`, `lockstep_standby_secondary_following{address="c:1"} 1`, `lockstep_standby_secondary_checkpoint{address="c:1"} 7`,
	} {
		if !strings.Contains(page.String(), want+"\n") {
			t.Errorf("%s is not in\n%s", want, &page)
		}
	}
}

// A relay that has never reached its secondary says why.
func TestARelaysStatusSaysWhyASecondaryIsAway(t *testing.T) {
	s := &follower{addr: "unix:" + t.TempDir() + "/nobody"}
	s.r = relayOf(s)
	s.begin(t.Context())
	defer s.end()
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if st := s.standing(); st.State == "away" {
			if !strings.Contains(st.Error, "no such file") {
				t.Errorf("%+v", st)
			}
			return
		}
		<-changed
	}
}
