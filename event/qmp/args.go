package qmp

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/internal/qjson"
)

// words is implemented by a string type that is an enumeration; it lists the values.
type words interface{ Words() []string }

var wordsType = reflect.TypeFor[words]()

// field is an argument of a command, or a member of an argument.
type field struct {
	name     string
	index    []int
	optional bool
}

func fields(t reflect.Type) (all []field) {
	for _, f := range reflect.VisibleFields(t) {
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || tag == "-" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		opts := strings.Split(options, ",")
		optional := f.Type.Kind() == reflect.Pointer || slices.Contains(opts, "omitempty") || slices.Contains(opts, "omitzero")
		for i := 1; i < len(f.Index); i++ { // an embedded pointer may be nil, and its fields absent
			optional = optional || t.FieldByIndex(f.Index[:i]).Type.Kind() == reflect.Pointer
		}
		all = append(all, field{tag, f.Index, optional})
	}
	return all
}

// checkType panics if there is no argument of type t. Seen are the structs that it has
// looked at: one may have itself among its members.
func checkType(t reflect.Type, command string, seen map[reflect.Type]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		checkType(t.Elem(), command, seen)
	case reflect.Struct:
		if seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			if f := t.Field(i); f.Anonymous && f.Type.Kind() == reflect.Pointer {
				panic(fmt.Sprintf("qmp: an argument of %s embeds a %v: embed the struct", command, f.Type))
			}
		}
		for _, f := range fields(t) {
			checkType(t.FieldByIndex(f.index).Type, command, seen)
		}
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
	case reflect.Interface:
		if t.NumMethod() == 0 {
			return
		}
		fallthrough
	default:
		panic(fmt.Sprintf("qmp: an argument of %s is a %v", command, t))
	}
}

func wrongType(path, want string) error {
	return refuse("Invalid parameter type for '%s', expected: %s", path, want)
}

// decodeObject sets a struct, whose path is empty or ends in a dot, to an
// object. Members are looked at in the order of the fields.
func decodeObject(path string, o qjson.Object, to reflect.Value) error {
	known := make(map[string]bool)
	for _, f := range fields(to.Type()) {
		known[f.name] = true
		v, ok := o.Get(f.name)
		if !ok {
			if f.optional {
				continue
			}
			return refuse("Parameter '%s' is missing", path+f.name)
		}
		if err := decodeValue(path+f.name, f.name, v, to.FieldByIndex(f.index)); err != nil {
			return err
		}
	}
	if name, ok := unexpected(o, known); ok {
		return refuse("Parameter '%s' is unexpected", path+name)
	}
	return nil
}

func decodeValue(path, name string, v any, to reflect.Value) error {
	switch to.Kind() {
	case reflect.Pointer:
		to.Set(reflect.New(to.Type().Elem()))
		return decodeValue(path, name, v, to.Elem())
	case reflect.Struct:
		o, ok := v.(qjson.Object)
		if !ok {
			return wrongType(path, "object")
		}
		return decodeObject(path+".", o, to)
	case reflect.Slice:
		a, ok := v.([]any)
		if !ok {
			return wrongType(path, "array")
		}
		s := reflect.MakeSlice(to.Type(), 0, 0)
		for i, e := range a { // memory grows only as elements prove valid
			v := reflect.New(to.Type().Elem()).Elem()
			if err := decodeValue(fmt.Sprintf("%s[%d]", path, i), "null", e, v); err != nil {
				return err
			}
			s = reflect.Append(s, v)
		}
		to.Set(s)
	case reflect.String:
		s, ok := v.(string)
		if !ok {
			return wrongType(path, "string")
		}
		if to.Type().Implements(wordsType) && !slices.Contains(to.Interface().(words).Words(), s) {
			return refuse("Parameter '%s' does not accept value '%s'", name, s)
		}
		to.SetString(s)
	case reflect.Bool:
		b, ok := v.(bool)
		if !ok {
			return wrongType(path, "boolean")
		}
		to.SetBool(b)
	case reflect.Float32, reflect.Float64:
		switch v := v.(type) {
		case float64:
			to.SetFloat(v)
		case int64:
			to.SetFloat(float64(v))
		case uint64:
			to.SetFloat(float64(v))
		default:
			return wrongType(path, "number")
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, ok := v.(int64)
		if !ok {
			return wrongType(path, "integer")
		}
		if to.OverflowInt(n) {
			return refuse("Parameter '%s' expects int%d_t", name, to.Type().Bits())
		}
		to.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var n uint64
		switch v := v.(type) {
		case int64:
			n = uint64(v) // a negative one is taken for a large one, as QEMU does
		case uint64:
			n = v
		default:
			return refuse("Parameter '%s' expects uint64", path)
		}
		if to.OverflowUint(n) {
			return refuse("Parameter '%s' expects uint%d_t", name, to.Type().Bits())
		}
		to.SetUint(n)
	case reflect.Interface:
		if v = plain(v); v != nil {
			to.Set(reflect.ValueOf(v))
		}
	}
	return nil
}

// plain returns a value with maps for objects, as encoding/json has them.
func plain(v any) any {
	switch v := v.(type) {
	case qjson.Object:
		m := make(map[string]any, len(v))
		for _, e := range v {
			m[e.Name] = plain(e.Value)
		}
		return m
	case []any:
		a := make([]any, len(v))
		for i, e := range v {
			a[i] = plain(e)
		}
		return a
	case float64:
		if math.IsInf(v, 0) {
			return math.Copysign(math.MaxFloat64, v) // encoding/json has no infinity
		}
	}
	return v
}

// unexpected returns the member that QEMU would name of those that are not known. QEMU
// keeps the members that it has not looked at in a hash table of GLib, and names the
// first one there: with up to seven members that is computed here, with more the first
// one in QEMU's own order is named.
func unexpected(o qjson.Object, known map[string]bool) (name string, ok bool) {
	sorted := o.Sorted()
	if len(sorted) > 7 {
		for _, m := range sorted {
			if !known[m.Name] {
				return m.Name, true
			}
		}
		return "", false
	}
	var table [8]*string
	for i := range sorted {
		name := &sorted[i].Name
		h := uint32(5381)
		for _, c := range []byte(qjson.Stored(*name)) {
			h = h*33 + uint32(int32(int8(c)))
		}
		at := max(h, 2) * 11 % 7
		for step := uint32(1); table[at] != nil; step++ {
			at = (at + step) & 7
		}
		table[at] = name
	}
	for _, name := range table {
		if name != nil && !known[*name] {
			return *name, true
		}
	}
	return "", false
}
