package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Members is a JSON object, as text: the members of an event's data that its
// type has no field for. It is empty if there are none. Members of objects
// inside the data are in objects of the same names. A Record with its Members
// encodes to the JSON that it was decoded from, but for the order of members.
type Members string

// Map returns the outermost members, nil if there are none or if the text is no
// object.
func (m Members) Map() map[string]json.RawMessage {
	var all map[string]json.RawMessage
	if m == "" || json.Unmarshal([]byte(m), &all) != nil {
		return nil
	}
	return all
}

// split divides the members of an object: own has those that the type has a field for,
// other the rest. It compares names exactly. The caller has called modern before.
func split(data json.RawMessage, t reflect.Type) (own, other json.RawMessage, err error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || len(data) == 0 || data[0] != '{' {
		return data, nil, nil
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, nil, err
	}
	fields := make(map[string]reflect.Type)
	collect(t, fields)
	mine, others := make(map[string]json.RawMessage), make(map[string]json.RawMessage)
	for name, value := range all {
		ft, ok := fields[name]
		if !ok {
			others[name] = value
			continue
		}
		in, out, err := split(value, ft)
		if err != nil {
			return nil, nil, err
		}
		mine[name] = in
		if out != nil {
			others[name] = out
		}
	}
	if len(others) == 0 {
		return data, nil, nil
	}
	if own, err = json.Marshal(mine); err != nil {
		return nil, nil, err
	}
	other, err = json.Marshal(others)
	return own, other, err
}

// collect adds the members of a struct type, those of embedded ones too.
func collect(t reflect.Type, to map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct {
				collect(ft, to)
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		if f.IsExported() && name != "-" {
			to[name] = f.Type
		}
	}
}

// merge puts the other members of an object behind its own, and those of
// objects inside it behind the members that it knows.
func merge(own json.RawMessage, other map[string]json.RawMessage) (json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(own))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("members for what is no object: %.20q", own)
	}
	out := []byte{'{'}
	put := func(name string, value json.RawMessage) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		text, _ := json.Marshal(name) // a string always can be
		out = append(append(append(out, text...), ':'), value...)
	}
	rest := maps.Clone(other)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if more, ok := rest[name]; ok {
			delete(rest, name)
			var inner map[string]json.RawMessage
			if value[0] == '{' && json.Unmarshal(more, &inner) == nil {
				if value, err = merge(value, inner); err != nil {
					return nil, err
				}
			}
		}
		put(name, value)
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		put(name, rest[name])
	}
	return append(out, '}'), nil
}
