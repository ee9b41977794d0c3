package compare_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

type step struct {
	Op      string   `json:"op"`
	ID      string   `json:"id"`
	Hex     string   `json:"hex"`
	VNetHdr int      `json:"vnet_hdr_len"`
	Out     []string `json:"out"`
	Notify  int      `json:"notify"`
}

type vector struct {
	Name        string   `json:"name"`
	Recommended []string `json:"recommended"`
	Options     struct {
		MaxQueue int `json:"max_queue_size"`
	} `json:"options"`
	Steps []step `json:"steps"`
}

// vectors returns frames and what colo-compare of QEMU 7.2.22 did with them.
func vectors(t testing.TB) []vector { return vectorsOf(t, "testdata/compare.json") }

func vectorsOf(t testing.TB, name string) []vector {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []vector }
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

// want returns the right outcome of each step: what left, and whether a checkpoint was asked
// for.
func (v *vector) want(t *testing.T, strict bool) []string {
	t.Helper()
	if v.Recommended != nil && !strict {
		if len(v.Recommended) != len(v.Steps) {
			t.Errorf("%s: %d recommendations for %d steps", v.Name, len(v.Recommended), len(v.Steps))
		}
		return v.Recommended
	}
	var want []string
	for _, s := range v.Steps {
		want = append(want, outcome(s.Out, s.Notify > 0))
	}
	return want
}

func outcome(out []string, notify bool) string {
	s := strings.Join(out, " ")
	if notify {
		s = strings.TrimSpace(s + " !")
	}
	if s == "" {
		s = "-"
	}
	return s
}

func (v *vector) run(t *testing.T, cfg compare.Config) []string {
	cfg.MaxQueue = v.Options.MaxQueue
	e := compare.NewEngine(cfg)
	now := time.Unix(1000, 0)
	sent := map[string]string{} // by content; equal frames have one name in no vector
	var epoch uint64
	var got []string
	for _, s := range v.Steps {
		data, err := hex.DecodeString(s.Hex)
		if err != nil {
			t.Fatal(err)
		}
		f := compare.Frame{Data: data, VNetHdr: s.VNetHdr}
		var r compare.Result
		switch s.Op {
		case "primary":
			sent[string(data)] = s.ID
			r = e.Primary(f, now)
		case "secondary":
			r = e.Secondary(f, now)
		case "checkpoint":
			if err := e.Mark(epoch); err != nil {
				t.Fatal(err)
			}
			if r, err = e.Received(epoch); err != nil {
				t.Fatal(err)
			}
			if err := e.Loaded(epoch); err != nil {
				t.Fatal(err)
			}
			epoch++
		default:
			t.Fatalf("%s: op %q", v.Name, s.Op)
		}
		var out []string
		for _, f := range r.Release {
			out = append(out, sent[string(f.Data)])
		}
		got = append(got, outcome(out, r.Diverged))
		clear(data) // the engine does not keep what it is given
		now = now.Add(time.Millisecond)
	}
	return got
}

func TestStrictEngineDoesWhatQEMUDid(t *testing.T) {
	for _, v := range vectors(t) {
		if got, want := v.run(t, compare.Config{Strict: true}), v.want(t, true); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", v.Name, got, want)
		}
	}
}

func TestEngineDoesWhatQEMUShould(t *testing.T) {
	// Those of the second file are nobody's but ours: no QEMU was asked.
	for _, v := range append(vectors(t), vectorsOf(t, "testdata/more.json")...) {
		if got, want := v.run(t, compare.Config{}), v.want(t, false); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", v.Name, got, want)
		}
	}
}
