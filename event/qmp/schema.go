package qmp

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qjson"
)

func (s *Server) commandNames() []nameOnly {
	var names []string
	for _, name := range ownNames {
		if name != "quit" || s.Quit != nil {
			names = append(names, name)
		}
	}
	if s.Commands != nil {
		names = append(names, s.Commands.names()...)
	}
	slices.Sort(names)
	var all []nameOnly
	for _, name := range slices.Compact(names) {
		all = append(all, nameOnly{name})
	}
	return all
}

func eventNames() (all []nameOnly) {
	for _, name := range slices.Sorted(maps.Keys(event.Types())) {
		all = append(all, nameOnly{name})
	}
	return all
}

// schema answers query-qmp-schema: SchemaInfo of all commands and events and of
// the types that they need. The names of types are numbers, as QEMU's are, but
// for those of JSON.
func (s *Server) schema() []any {
	w := &schemaWriter{names: make(map[reflect.Type]string)}
	own := &client{s: s}
	for _, n := range s.commandNames() {
		cmd := own.own(n.Name)
		if cmd == nil {
			cmd = s.Commands.get(n.Name)
		}
		if cmd == nil {
			continue // it has been removed since
		}
		w.add("command", n.Name, "arg-type", w.object(cmd.args), "ret-type", w.name(cmd.result), "allow-oob", cmd.oob)
	}
	types := event.Types()
	for _, name := range slices.Sorted(maps.Keys(types)) {
		w.add("event", name, "arg-type", w.object(types[name]))
	}
	return w.all
}

// schemaWriter gathers the elements of the answer to query-qmp-schema.
type schemaWriter struct {
	all   []any
	names map[reflect.Type]string
	next  int
}

func (w *schemaWriter) add(meta, name string, members ...any) {
	o := qjson.Object{{Name: "name", Value: name}, {Name: "meta-type", Value: meta}}
	for i := 0; i < len(members); i += 2 {
		if members[i+1] != false { // allow-oob, which is there if it is true
			o = append(o, qjson.Member{Name: members[i].(string), Value: members[i+1]})
		}
	}
	w.all = append(w.all, o)
}

// fresh returns the name of a type that has none yet.
func (w *schemaWriter) fresh(t reflect.Type) string {
	name := fmt.Sprint(w.next)
	w.next++
	w.names[t] = name
	return name
}

func (w *schemaWriter) builtin(t reflect.Type, name, jsonType string) string {
	if w.names[t] == "" {
		w.names[t] = name
		if !slices.ContainsFunc(w.all, func(v any) bool { n, _ := v.(qjson.Object).Get("name"); return n == name }) {
			w.add("builtin", name, "json-type", jsonType)
		}
	}
	return name
}

var (
	textType  = reflect.TypeFor[encoding.TextMarshaler]()
	jsonType  = reflect.TypeFor[json.Marshaler]()
	valueType = reflect.TypeFor[qjson.Object]()
)

// name returns the name of a type, which it describes if it is new.
func (w *schemaWriter) name(t reflect.Type) string {
	if n := w.names[t]; n != "" {
		return n
	}
	switch {
	case t == valueType || t.Kind() == reflect.Interface || t.Kind() == reflect.Map:
		return w.builtin(t, "any", "value")
	case t.Kind() == reflect.String && t.Implements(wordsType):
		values, members := []any{}, []any{}
		for _, v := range reflect.Zero(t).Interface().(words).Words() {
			values = append(values, v)
			members = append(members, qjson.Object{{Name: "name", Value: v}})
		}
		n := w.fresh(t)
		w.add("enum", n, "members", members, "values", values)
		return n
	case t.Kind() == reflect.String || t.Implements(textType):
		return w.builtin(t, "str", "string")
	case t.Implements(jsonType): // which alone knows what it writes
		return w.builtin(t, "any", "value")
	}
	switch t.Kind() {
	case reflect.Pointer:
		return w.name(t.Elem())
	case reflect.Slice, reflect.Array:
		element := w.name(t.Elem())
		name := "[" + element + "]"
		if w.names[t] == "" {
			w.names[t] = name
			w.add("array", name, "element-type", element)
		}
		return name
	case reflect.Struct:
		return w.object(t)
	case reflect.Bool:
		return w.builtin(t, "bool", "boolean")
	case reflect.Float32, reflect.Float64:
		return w.builtin(t, "number", "number")
	}
	return w.builtin(t, "int", "int")
}

// object returns the name of a struct type.
func (w *schemaWriter) object(t reflect.Type) string {
	if n := w.names[t]; n != "" {
		return n
	}
	if t.Kind() != reflect.Struct {
		return w.name(t)
	}
	n := w.fresh(t)
	members := []any{}
	for _, f := range fields(t) {
		m := qjson.Object{{Name: "name", Value: f.name}, {Name: "type", Value: w.name(t.FieldByIndex(f.index).Type)}}
		if f.optional {
			m = append(m, qjson.Member{Name: "default", Value: nil})
		}
		members = append(members, m)
	}
	w.add("object", n, "members", members)
	return n
}
