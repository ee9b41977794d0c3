package failover_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Every record of a small world, and everything that two hosts can ask of it.
func TestEveryRequestToEveryRecordFollowsTheRules(t *testing.T) {
	tokens := []string{"", "a", "b"}
	count := 0
	for generation := range uint64(4) {
		for _, token := range tokens {
			if token != "" && generation == 0 {
				continue
			}
			r := failover.Record{Generation: generation, Holder: token, Token: token, Note: "old", Writes: generation + 5}
			for _, asks := range tokens[1:] {
				for after := range uint64(5) {
					for _, lapsed := range []bool{false, true} {
						count++
						c := failover.Claim{Holder: asks, Token: asks, After: after, Term: time.Second, Note: "new"}
						next, granted, err := r.Acquire(c, lapsed)
						if wrong := judgeAcquire(r, c, lapsed, next, granted, err); wrong != "" {
							t.Errorf("%+v, %+v, lapsed %v: %s (%+v, %v, %v)", r, c, lapsed, wrong, next, granted, err)
						}
					}
					g := failover.Grant{Generation: after, Token: asks}
					mine := token == asks && after == generation
					next, err := r.Renew(g, "new")
					if (err == nil) != mine || err != nil && (!errors.Is(err, failover.ErrRefused) || next != r) {
						t.Errorf("%+v renews %+v: %+v, %v", g, r, next, err)
					} else if err == nil && (next.Changed(r) || next.Note != "new" || next.Writes != r.Writes+1) {
						t.Errorf("%+v renewed %+v: %+v", g, r, next)
					}
					next, err = r.Release(g, "new")
					if (err == nil) != mine || err != nil && (!errors.Is(err, failover.ErrRefused) || next != r) {
						t.Errorf("%+v releases %+v: %+v, %v", g, r, next, err)
					} else if err == nil && (next.Held() || next.Generation != r.Generation || next.Holder != "" || next.Writes != r.Writes+1) {
						t.Errorf("%+v released %+v: %+v", g, r, next)
					}
				}
			}
			// A grant that says nothing of whose it is is nobody's, also where nobody has the guest.
			if _, err := r.Renew(failover.Grant{Generation: generation}, "new"); !errors.Is(err, failover.ErrRefused) {
				t.Errorf("a grant of nobody renews %+v: %v", r, err)
			}
			if _, err := r.Release(failover.Grant{Generation: generation}, "new"); !errors.Is(err, failover.ErrRefused) {
				t.Errorf("a grant of nobody releases %+v: %v", r, err)
			}
		}
	}
	t.Logf("%d claims", count)
}

// judgeAcquire says in other words than the code's what a claim must lead to.
func judgeAcquire(r failover.Record, c failover.Claim, lapsed bool, next failover.Record, granted bool, err error) string {
	has := r.Token == c.Token
	switch {
	case err != nil && granted:
		return "granted with an error"
	case err == nil && !granted && next != r:
		return "waits, and changed the record"
	case err != nil && next != r:
		return "refused, and changed the record"
	case granted && (next.Writes != r.Writes+1 || next.Token != c.Token || next.Holder != c.Holder || next.Note != c.Note || next.Term != c.Term):
		return "granted, and the record is not the claim's"
	case granted && next.Generation < r.Generation:
		return "a generation went back"
	case granted && next.Generation != c.After+1:
		return "the generation is not the one after the claimant's"
	case granted && next.Generation == r.Generation && !has:
		return "two holders in one generation"
	}
	switch {
	case c.After > r.Generation, c.After < r.Generation && !(has && c.After+1 == r.Generation):
		if !errors.Is(err, failover.ErrRefused) {
			return "not refused, though its copy is not of the present generation"
		}
	case c.After == r.Generation && (r.Token == "" || has || lapsed):
		if !granted {
			return "not granted, though nobody else may have it"
		}
	case c.After == r.Generation:
		if granted || err != nil {
			return "did not wait for the holder"
		}
	}
	return ""
}

func TestRecordSurvivesItsEncoding(t *testing.T) {
	for _, r := range []failover.Record{
		{},
		{Generation: 3, Note: "\x00\xff", Writes: 7},
		{Generation: 1 << 63, Holder: "host \"a\"\n", Token: "t", Term: time.Hour, Note: strings.Repeat("n", failover.MaxNote), Writes: 1<<64 - 1},
		{Generation: 1, Holder: strings.Repeat("\x01", failover.MaxName), Token: strings.Repeat("\u2028", failover.MaxName/3), Writes: 1},
	} {
		b := r.Encode()
		got, err := failover.DecodeRecord(b)
		if err != nil || got != r {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
		if len(b) > failover.MaxRecord || strings.Count(string(b), "\n") != 1 {
			t.Errorf("%d bytes: %q", len(b), b)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(failover.Record{}.Encode())
	f.Add(failover.Record{Generation: 2, Holder: "a", Token: "t", Term: time.Second, Note: "n", Writes: 4}.Encode())
	f.Add([]byte(`{"format":"lockstep-arbiter-1","generation":1,"holder":"h","writes":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := failover.DecodeRecord(b)
		if err != nil {
			if !errors.Is(err, failover.ErrRecord) {
				t.Fatalf("%v is not ErrRecord", err)
			}
			return
		}
		if again, err := failover.DecodeRecord(r.Encode()); err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

func TestWhatIsNoRecordOfThisFormatIsRefused(t *testing.T) {
	const good = `{"format":"lockstep-arbiter-1","generation":7,"holder":"a","token":"x","term_ns":1000,"writes":9}`
	if r, err := failover.DecodeRecord([]byte(good)); err != nil || r != (failover.Record{Generation: 7, Holder: "a", Token: "x", Term: 1000, Writes: 9}) {
		t.Fatalf("%+v, %v", r, err)
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, change := range map[string][2]string{
		"another format":                {"arbiter-1", "arbiter-2"},
		"a member that is not known":    {`"writes"`, `"fence":"b","writes"`},
		"more behind it":                {`}`, `}{}`},
		"cut":                           {`}`, ``},
		"longer than any record":        {`}`, "}" + strings.Repeat(" ", failover.MaxRecord)},
		"a negative term":               {`1000`, `-1`},
		"a long name":                   {`"a"`, `"` + long(failover.MaxName+1) + `"`},
		"a long token":                  {`"x"`, `"` + long(failover.MaxName+1) + `"`},
		"a long note":                   {`"writes"`, `"note":"` + long(2*failover.MaxNote) + `","writes"`},
		"a token without a holder":      {`"holder":"a",`, ``},
		"a holder without a token":      {`"token":"x",`, ``},
		"held, without a generation":    {`:7,`, `:0,`},
		"a term without a holder":       {`"holder":"a","token":"x",`, ``},
		"fewer writes than generations": {`:9`, `:6`},
	} {
		b := strings.Replace(good, change[0], change[1], 1)
		if r, err := failover.DecodeRecord([]byte(b)); b == good || !errors.Is(err, failover.ErrRecord) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestTokensDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		seen[failover.NewToken()] = true
	}
	if len(seen) != 1000 {
		t.Error(fmt.Sprint(len(seen), " different tokens of 1000"))
	}
}

// A host whose arbiter's record was put back is told that, and not that its generation is over.
func TestAHolderIsToldThatTheRecordWentBack(t *testing.T) {
	for _, r := range []failover.Record{{}, {Generation: 5, Holder: "b", Token: "b"}} {
		g := failover.Grant{Generation: 7, Token: "a"}
		_, renew := r.Renew(g, "")
		_, release := r.Release(g, "")
		want := fmt.Sprintf("the record ends with generation %d, but there was a generation 7", r.Generation)
		for _, err := range []error{renew, release} {
			if !errors.Is(err, failover.ErrRefused) || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v", r, err)
			}
		}
	}
	now := failover.Record{Generation: 7, Holder: "b", Token: "b"}
	if _, err := now.Renew(failover.Grant{Generation: 7, Token: "a"}, ""); err == nil || strings.Contains(err.Error(), "ends with") {
		t.Errorf("of another's grant of the same generation: %v", err)
	}
}
