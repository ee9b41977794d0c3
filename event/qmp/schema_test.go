package qmp_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/event/qmp"
)

// A schema holds the answer of query-qmp-schema, by name; names of commands and events have
// their meta-type before them.
type schema map[string]schemaInfo

type schemaInfo struct {
	name, meta, json, args, result, element string
	oob                                     bool
	members                                 []schemaMember
	variants                                []string // that may add members
	values                                  []string // of an enumeration
}

type schemaMember struct {
	name, of string
	optional bool
}

// schemaOf asks a monitor for its schema.
func schemaOf(t *testing.T, addr string) schema {
	t.Helper()
	c, err := qmp.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []map[string]any
	if err := c.Do(t.Context(), "query-qmp-schema", nil, &all); err != nil {
		t.Fatal(err)
	}
	text := func(v any, name string) string {
		m, _ := v.(map[string]any)
		s, _ := m[name].(string)
		return s
	}
	list := func(m map[string]any, name string) []any { l, _ := m[name].([]any); return l }
	s := make(schema)
	for _, m := range all {
		i := schemaInfo{
			name: text(m, "name"), meta: text(m, "meta-type"), json: text(m, "json-type"), args: text(m, "arg-type"),
			result: text(m, "ret-type"), element: text(m, "element-type"), oob: m["allow-oob"] == true,
		}
		for _, v := range list(m, "members") {
			if v, ok := v.(map[string]any); ok { // one of an enumeration, of others than a QEMU 7.2, is a string
				_, optional := v["default"]
				i.members = append(i.members, schemaMember{text(v, "name"), text(v, "type"), optional})
			}
		}
		for _, v := range list(m, "variants") {
			i.variants = append(i.variants, text(v, "type"))
		}
		for _, v := range list(m, "values") {
			word, _ := v.(string)
			i.values = append(i.values, word)
		}
		if i.meta == "command" || i.meta == "event" {
			i.name = i.meta + " " + i.name
		}
		s[i.name] = i
	}
	return s
}

// members returns the members of an object and of its variants.
func (s schema) members(name string) map[string]schemaMember {
	all := make(map[string]schemaMember)
	for _, v := range s[name].variants {
		for n, m := range s.members(v) {
			m.optional = true
			all[n] = m
		}
	}
	for _, m := range s[name].members {
		all[m.name] = m
	}
	return all
}

// kind returns the JSON kind of a type.
func (s schema) kind(name string) string {
	switch i := s[name]; i.meta {
	case "builtin":
		return i.json
	case "enum":
		return "string"
	default:
		return i.meta
	}
}

// A comparison sets the schema of this package beside that of a QEMU.
type comparison struct {
	ours, theirs schema
	// events are read in more forms than one QEMU has: what is a must there may be
	// optional here, and there may be more.
	events bool
	seen   map[string]bool
	found  []string
}

func (c *comparison) differ(path, format string, args ...any) {
	c.found = append(c.found, path+": "+fmt.Sprintf(format, args...))
}

// types compares a, a type of this package, with b, which is that of the QEMU.
func (c *comparison) types(path, a, b string) {
	if c.seen[a+" "+b] {
		return
	}
	c.seen[a+" "+b] = true
	kind := c.ours.kind(a)
	if want := c.theirs.kind(b); kind != want {
		c.differ(path, "%s, want %s", kind, want)
		return
	}
	if kind == "array" {
		c.types(path+"[]", c.ours[a].element, c.theirs[b].element)
		return
	}
	if x, y := c.ours[a], c.theirs[b]; x.meta == "enum" && y.meta == "enum" && !slices.Equal(x.values, y.values) {
		c.differ(path, "one of %q, want %q", x.values, y.values)
	}
	if kind != "object" {
		return
	}
	want := c.theirs.members(b)
	for name, m := range c.ours.members(a) {
		path, w := path+"."+name, want[name]
		switch {
		case w.name == "" && !c.events:
			c.differ(path, "a QEMU has none")
		case w.name == "":
		case m.optional != w.optional && !(c.events && m.optional):
			c.differ(path, "optional %t, want %t", m.optional, w.optional)
		default:
			c.types(path, m.of, w.of)
		}
		delete(want, name)
	}
	for name, m := range want {
		if !m.optional || c.events {
			c.differ(path, "no %s", name)
		}
	}
}

// What a program learns of the commands and events that both have is the same, but for
// optional members of commands that a host has no use for.
func TestASchemaDescribesWhatAQEMUHasTooAsTheQEMUDoes(t *testing.T) {
	theirs := schemaOf(t, emulator(t))
	_, s := newHost()
	ours := schemaOf(t, listen(t, s))
	both := 0
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		a, b := ours[name], theirs[name]
		if b.name == "" || a.meta != "command" && a.meta != "event" {
			continue
		}
		both++
		if a.oob != b.oob {
			t.Errorf("%s: allow-oob %t", name, a.oob)
		}
		c := comparison{ours: ours, theirs: theirs, events: a.meta == "event", seen: make(map[string]bool)}
		c.types(name+": arguments", a.args, b.args)
		if a.meta == "command" {
			c.types(name+": answer", a.result, b.result)
		}
		for _, d := range c.found {
			t.Error(d)
		}
	}
	if both < 60 {
		t.Errorf("%d commands and events of both", both)
	}
}
