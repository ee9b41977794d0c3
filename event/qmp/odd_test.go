package qmp_test

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// odd is input that is good JSON and an odd command: what is no string, array or
// object where one is wanted, what lacks, what is too much, and ids of all kinds.
func odd() (all []string) {
	id := func(v string) {
		all = append(all, `{"execute":"query-name","id":`+v+`}`, `{"id":`+v+`,"execute":"nope"}`)
	}
	for _, v := range []string{
		`null`, `true`, `false`, `[]`, `{}`, `""`, `[null,[],{}]`, `{"":{"":[]}}`, `{"b":1,"a":2,"id":3,"execute":4}`, `"\u0000\u001f\u007f\u0080\uFFFD\/"`, `-9223372036854775808`, `9223372036854775808`,
		`{"\u0000":1,"a":2,"\u0000b":3,"b\u0000":4,"":5}`, `1e308`, `-1e-308`, `1.0`, `100000000000000000000.5`, `"\ud83d\ude00\udbff\udffd"`, `[1.5,1.25,-0.0,1e5,1E-5]`, `[[[[[["\"\\"]]]]]]`,
	} {
		id(v)
	}
	return append(all,
		// Members beside the command.
		`{"execute":"query-name","control":{"run-oob":true}}`, `{"execute":"query-name","control":null,"id":1}`, `{"execute":"query-name","exec-oob":"query-name","id":1}`, `{"exec-oob":null}`, `{"exec-oob":"migrate-pause","id":"x"}`,
		`{"exec-oob":"qmp_capabilities"}`, `{"execute":"query-name","Execute":"query-name"}`, `{"execute":"query-name","execute\u0000":1}`, `{"execute":"query-name","id":1,"Id":2}`, `{"\u0065xecute":"query-name"}`,
		`{"execute":"query-name","arguments":{},"args":{}}`, `{"arguments":{},"id":1}`, `{"execute":{"execute":"query-name"}}`, `{"execute":true,"id":[]}`, `{"execute":0}`, `{"execute":["query-name"]}`,
		`{"execute":"query-name","execute":"query-name"}`, `{"execute":"query-name","id":1,"id":1}`, `{"arguments":"x","execute":"query-name"}`, `{"arguments":false,"execute":"nope","id":{}}`, `{"arguments":0.0,"execute":"stop"}`,
		`{"execute":"query-name","arguments":[{}],"id":1}`, `{"execute":"stop","arguments":{"":null}}`, `{"execute":"stop","arguments":{"\u0000":1}}`, `{"execute":"stop","arguments":{"a\u0000b":1}}`, `{"execute":"stop","arguments":{"é":1}}`,
		`{"execute":"stop\u0000x"}`, `{"execute":"\u0000"}`, `{"execute":"\ud83d\ude00"}`, `{"execute":"stop\n"}`, `{"execute":"qmp_capabilities","arguments":{"enable":[],"enable ":[]}}`,
		// Where enumerations and lists of them are wanted.
		`{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob","no"]}}`, `{"execute":"qmp_capabilities","arguments":{"enable":[1.5]}}`, `{"execute":"qmp_capabilities","arguments":{"enable":["OOB"]}}`, `{"execute":"qmp_capabilities","arguments":{"enable":["oob\u0000"]}}`,
		`{"execute":"qmp_capabilities","arguments":{"enable":{"0":"oob"}}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[null]}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":["x-colo"]}}`,
		`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":null,"state":null}]}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"state":true,"capability":"x-colo","a":1,"b":2,"c":3}]}}`,
		`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"X-COLO","state":false}]}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"","state":false}]}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-colo","state":"on"}]}}`,
		`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-colo"}],"extra":0}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":null}}`, `{"execute":"migrate-set-capabilities","arguments":{"capabilities":[[{"capability":"x-colo","state":false}]]}}`,
		// Where integers are wanted.
		`{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":true}}`, `{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":{}}}`, `{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":1e2}}`, `{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":-0}}`,
		`{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":-9223372036854775808}}`, `{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":9223372036854775808}}`, `{"execute":"migrate-set-parameters","arguments":{"x_checkpoint_delay":1}}`, `{"execute":"migrate-set-parameters","arguments":{"":1}}`,
		`{"execute":"balloon","arguments":{"value":null}}`, `{"execute":"balloon","arguments":{"value":[1]}}`, `{"execute":"balloon","arguments":{"value":1e3}}`, `{"execute":"balloon","arguments":{"value":-9223372036854775809}}`, `{"execute":"balloon","arguments":{"value":true,"value2":1}}`,
		// Where strings are wanted.
		`{"execute":"job-pause","arguments":{"id":"a\u0000b"}}`, `{"execute":"job-pause","arguments":{"id":"\ud83d\ude00"}}`, `{"execute":"job-pause","arguments":{"ID":"x"}}`, `{"execute":"job-cancel","arguments":{"id":{"id":"x"}}}`, `{"execute":"job-complete","arguments":{"id":1.5,"id2":2}}`,
		`{"execute":"job-dismiss","arguments":{"id":false}}`, `{"execute":"device_del","arguments":{"id":null}}`, `{"execute":"device_del","arguments":{"id":"%n%s"}}`, `{"execute":"device_del","arguments":{}}`,
	)
}

// oddArguments returns a command that a QEMU has, too, with arguments that were drawn. None
// of them ends or changes a QEMU.
func oddArguments(r *rand.Rand) string {
	commands := []string{"query-name", "query-version", "query-status", "query-jobs", "query-migrate-capabilities", "query-colo-status", "query-xen-replication-status", "x-colo-lost-heartbeat", "xen-colo-do-checkpoint",
		"qmp_capabilities", "job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize", "job-dismiss", "balloon", "device_del", "migrate-set-capabilities", "migrate-set-parameters", "xen-set-replication"}
	names := []string{"id", "enable", "primary", "failover", "value", "capabilities", "x-checkpoint-delay", "", "a", "foo", "é", `\u0000`, "x"}
	values := []string{"null", "true", "false", "0", "-1", "1.0", "1.5", "4294967296", "18446744073709551616", `""`, `"x"`, `"oob"`, `"a\u0000"`, "[]", "{}", "[1]", `["oob"]`, `["no"]`, `[{}]`, `{"a":1}`, `[[]]`, `[null]`,
		`[{"capability":"x-colo"}]`, `[{"capability":"x-colo","state":0}]`, `[{"state":true,"x":1}]`, `[{"capability":"no","state":false}]`}
	pick := func(of []string) string { return of[r.IntN(len(of))] }
	var b strings.Builder
	b.WriteString(`{"execute":"` + pick(commands) + `","id":1`)
	if r.IntN(12) == 0 {
		b.WriteString(`,"arguments":` + pick(values))
	} else {
		b.WriteString(`,"arguments":{`)
		seen := make(map[string]bool)
		for range r.IntN(4) {
			if name := pick(names); !seen[name] || r.IntN(20) == 0 {
				if len(seen) > 0 {
					b.WriteString(",")
				}
				seen[name] = true
				b.WriteString(`"` + name + `":` + pick(values))
			}
		}
		b.WriteString("}")
	}
	if r.IntN(15) == 0 {
		b.WriteString(`,"` + pick([]string{"control", "exec-oob", "Id", "execute", ""}) + `":` + pick(values))
	}
	return b.String() + "}"
}

// oddID returns a command, good or not, with an id that was drawn: a value of any type, in which
// there may be others.
func oddID(r *rand.Rand) string {
	commands := []string{`"execute":"query-name"`, `"execute":"nope"`, `"exec-oob":"query-name"`, `"exec-oob":"migrate-pause"`, `"execute":1`, `"execute":"stop","arguments":{"a":1}`, `"execute":"query-name","x":0`}
	id, command := `"id":`+value(r, 4), commands[r.IntN(len(commands))]
	if r.IntN(2) == 0 {
		return "{" + id + "," + command + "}"
	}
	return "{" + command + "," + id + "}"
}

// value returns a value of JSON, in which others are nested so deep at most.
func value(r *rand.Rand, depth int) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	text := func() string {
		var b strings.Builder
		for range r.IntN(6) {
			b.WriteString(pick("a", "b", "id", "Z", "0", " ", "_", "-", "/", "é", "€", "😀", `\u00e9`, `\u20AC`, `\ud83d\ude00`, `\n`, `\t`, `\b`, `\\`, `\"`, `\/`, "'", `\u0000`, `\u001f`, "\x7f", `\u007f`, `\ufffd`, "long-name"))
		}
		return `"` + b.String() + `"`
	}
	var b strings.Builder
	switch kind := r.IntN(8); {
	case kind == 0:
		return pick("null", "true", "false")
	case kind == 1:
		return pick("0", "-0", "7", "-1", "255", "65536", "2147483648", "-2147483649", "4294967295", "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551615")
	case kind == 2:
		return pick("0.5", "1.0", "-1.25", "1e3", "1E-3", "3.141592653589793", "1e15", "1e16", "123456789.125", "0.1", "1e-7", "2.5e-5", "6.02e23", "99999999999999999999")
	case kind == 3 || depth == 0:
		return text()
	case kind < 6:
		b.WriteString("[")
		for i := range r.IntN(5) {
			if i > 0 {
				b.WriteString(pick(",", ", "))
			}
			b.WriteString(value(r, depth-1))
		}
		return b.String() + "]"
	}
	b.WriteString("{")
	seen := make(map[string]bool)
	for range r.IntN(8) {
		key := text()
		if seen[key] {
			continue
		}
		if len(seen) > 0 {
			b.WriteString(",")
		}
		seen[key] = true
		b.WriteString(key + pick(":", " : ") + value(r, depth-1))
	}
	return b.String() + "}"
}

// What a QEMU 7.2 names of several arguments that it does not know, one of them with a
// NUL, which it does not keep as one byte.
func TestOfUnknownArgumentsTheOneThatAQEMUNamesIsNamed(t *testing.T) {
	_, s := newHost()
	ours := listen(t, s)
	for args, named := range map[string]string{
		`"\u0000":1,"é":2`:                        `\u00E9`,
		`"\u0000":1,"capabilities":2`:             `capabilities`,
		`"\u0000":1,"id":2,"capabilities":3`:      `capabilities`,
		`"":1,"\u0000":2,"capabilities":3`:        `capabilities`,
		`"\u0000":1,"x-checkpoint-delay":2,"é":3`: `\u00E9`,
	} {
		got, err := answers(ours, true, `{"execute":"query-name","arguments":{`+args+`}}`)
		if err != nil || !strings.Contains(got[0], "Parameter '"+named+"' is unexpected") {
			t.Errorf("%s: %q, %v", args, got, err)
		}
	}
}
