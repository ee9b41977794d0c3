package qmp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event/qmp"
)

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
