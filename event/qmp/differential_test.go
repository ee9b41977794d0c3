package qmp_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
)

// emulator runs a QEMU without a machine until the test ends, and returns where
// its monitor is.
func emulator(t *testing.T) (addr string) {
	t.Helper()
	path := require.Program(t, require.QEMU, "qemu-system-x86_64")
	version, err := exec.Command(path, "--version").Output()
	if err != nil || !strings.Contains(string(version), "version 7.2.") {
		require.Missing(t, require.QEMU, fmt.Errorf("it is no 7.2: %.60q, %v", version, err))
	}
	addr = filepath.Join(socket.Dir(t), "qemu")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-machine", "none", "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp", "unix:"+addr+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", addr); err == nil {
			c.Close()
			return addr
		}
	}
	t.Fatal("its monitor does not come up")
	return ""
}

// build returns whose build a QEMU is.
func build(t *testing.T, addr string) string {
	c, err := qmp.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var v struct{ Package string }
	if err := c.Do(t.Context(), "query-version", nil, &v); err != nil {
		t.Fatal(err)
	}
	return v.Package
}

// answers sends a text, then what ends anything that it has begun, and returns
// the lines up to the answer to a last command.
func answers(addr string, negotiate bool, in string) (out []string, err error) {
	if negotiate {
		return answersAfter(addr, `{"execute":"qmp_capabilities"}`, in)
	}
	return answersAfter(addr, "", in)
}

// answersAfter does that after a first command, if there is one.
func answersAfter(addr, first, in string) (out []string, err error) {
	conn, err := net.Dial("unix", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return nil, err
	}
	if first != "" {
		fmt.Fprint(conn, first)
		if _, err := r.ReadString('\n'); err != nil {
			return nil, err
		}
	}
	go fmt.Fprint(conn, in, "\xff\n", `{"execute":"qmp_capabilities","id":"the end"}`)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return out, err
		}
		out = append(out, stamps.ReplaceAllString(line, `"seconds": 0, "microseconds": 0`))
		if strings.Contains(line, `"the end"`) {
			return out, nil
		}
	}
}

// malformed is input that is wrong in one way each: truncated, nested, huge, of
// wrong types, with duplicate keys, no UTF-8, surrogates, numbers out of range,
// more than one object in a line, one over many lines.
func malformed() []string {
	name := func(id string) string { return `{"execute":"query-name","id":` + id + `}` }
	args := func(command, args string) string {
		return `{"execute":"` + command + `","arguments":` + args + `,"id":7}`
	}
	all := []string{
		// Truncated, and what is left over.
		`{`, `{"`, `{"execute`, `{"execute"`, `{"execute":`, `{"execute":"query-name`, `{"execute":"query-name"`, `{"execute":"query-name",`,
		`[`, `[1`, `[1,`, `"`, `'`, `-`, `1.`, `1e`, `1e+`, `tru`, `\`, `}`, `]`, `:`, `,`, `}}`, `]]`, `{]`, `[}`, `{}}`, `[]]`, `{{}}`, `{[]}`, `[{]}`,
		// Separators.
		`{"a" 1}`, `{"a":1 "b":2}`, `{"a"::1}`, `{,}`, `{"a":1,}`, `{"a":1,,"b":2}`, `[,]`, `[1,]`, `[1,,2]`, `[1 2]`, `[1:2]`, `{"a",1}`, `{:1}`, `{"a":}`,
		// Keys that are none.
		`{1:2}`, `{null:1}`, `{true:1}`, `{{}:1}`, `{[]:1}`, `{foo:1}`, `{"a":1,"a":2}`, `{"id":{"x":1,"x":1}}`, `{"a":1,"\u0061":2}`, `{"":1}`, `{"":1,"":2}`,
		// Words and numbers.
		name("nul"), name("nulll"), name("True"), name("NaN"), name("-Infinity"), name("+1"), name("01"), name("-01"), name("0x10"), name("0e0"), name("0E1"),
		name(".5"), name("1."), name("1.e1"), name("1e"), name("1_000"), name("--1"), name("1-1"), name("1e400"), name("-1e400"), name("1e-400"),
		name("18446744073709551615"), name("18446744073709551616"), name("-9223372036854775808"), name("-9223372036854775809"), name("-0"), name("-0.0"),
		name("0.1"), name("1e22"), name("1E+2"), name("123456789012345678901234567890"), name("1.7976931348623157e308"), name("5e-324"), name("1e16"), name("1e17"), name("123456.789e-7"),
		// Strings.
		name(`"\q"`), name(`"\u"`), name(`"\u1"`), name(`"\u12"`), name(`"\u123"`), name(`"\u123g"`), name(`"\uD83D"`), name(`"\uDE00"`), name(`"\uD83D\uDE00"`),
		name(`"\uD83Dx"`), name(`"\uD83D\n"`), name(`"\uD83D\u0041"`), name(`"\uD83D\uD83D"`), name(`"\uDE00\uD83D"`), name(`"\uFFFE"`), name(`"\uFFFF"`), name(`"\uFDD0"`), name(`"\u0000"`),
		name(`"\U0041"`), name(`"\x41"`), name(`"\0"`), name(`'\''`), name(`'"'`), name(`"'"`), name("\"a\tb\""), name("\"a\nb\""), name("\"a\x00b\""), name("\"a\x7fb\""), name("\"\\\n\""),
		name("\"\x80\""), name("\"\xc3\""), name("\"\xc3\xa9\""), name("\"\xc0\x80\""), name("\"\xc0\xaf\""), name("\"\xe2\x82\""), name("\"\xe2\x82\xac\""), name("\"\xed\xa0\xbd\""),
		name("\"\xf0\x9f\x98\x80\""), name("\"\xf4\x90\x80\x80\""), name("\"\xf8\x88\x80\x80\x80\""), name("\"\xfc\x84\x80\x80\x80\x80\""), name("\"\xef\xbf\xbe\""), name("\"\xef\xb7\x90\""), name("\"\xef\xbf\xbd\""), name("\"\xfe\""), name("\"\xff\""),
		// Strays, and how much is skipped.
		"#", "# 1\n2\n", "# 1 2\t3", "# 1,2\n", "# 1:2 ", "# 1\xff2\n", "# 1\xfe2\n", "# 1\x012\n", "# \"\n\"", "\x00{}", "\x0c{}", "\xef\xbb\xbf{}", "\xa0{}", "\xff{}", "/* */ {}", "// {}", "A{}", "é\n{}", "\xe2\x82#\n", "\"\xe2\x82\x01\n", "\"é\x01\n", "\"\xf0\x9f\x01\n", "\"\xff\xff\n", "\"\xc3\xc3\x02\n",
		// Values that are no command.
		"1 ", "-1 ", "1.5 ", `"x"`, "true ", "null ", "[]", "[{}]", "{}", `{"id":1}`, `{"execute":null}`, `{"execute":[],"id":1}`, `{"execute":1.5}`, `{"exec-oob":"query-name"}`, `{"exec-oob":1,"execute":"query-name"}`,
		`{"execute":"query-name","arguments":[]}`, `{"execute":"query-name","arguments":null,"id":1}`, `{"execute":"query-name","control":1}`, `{"execute":"query-name","z":1,"a":2,"m":3}`, `{"arguments":1,"execute":1}`, `{"a":1,"b":2}`,
		// Commands and arguments that are none.
		`{"execute":""}`, `{"execute":"QUERY-NAME"}`, `{"execute":"query_name"}`, `{"execute":" query-name"}`, `{"execute":"query-name\u0000"}`, `{"execute":"é"}`, `{"execute":"a\"b"}`, `{"execute":"%s%n"}`,
		args("query-name", `{"a":1}`), args("query-name", `{"foo":1,"bar":2}`), args("query-name", `{"a":1,"b":2,"c":3}`), args("query-name", `{"one":1,"two":2,"three":3,"four":4,"five":5}`), args("query-name", `{"zz":1,"id":2,"aa":3,"x":4,"y":5,"z":6,"w":7}`),
		args("qmp_capabilities", `{"enable":["oob"]}`), args("qmp_capabilities", `{"enable":"oob"}`), args("qmp_capabilities", `{"enable":["no"]}`), args("qmp_capabilities", `{"enable":[null]}`), args("qmp_capabilities", `{"enable":[[]]}`), args("qmp_capabilities", `{"enabled":[]}`), args("qmp_capabilities", `{"enable":null}`),
		args("job-pause", `{}`), args("job-pause", `{"id":1}`), args("job-pause", `{"id":"j"}`), args("job-pause", `{"id":"j","x":1}`), args("job-cancel", `{"device":"j"}`), args("job-complete", `{"id":null}`), args("job-resume", `{"id":["j"]}`), args("job-finalize", `{"id":"x"}`), args("job-dismiss", `{"id":""}`),
		args("xen-set-replication", `{}`), args("xen-set-replication", `{"enable":true}`), args("xen-set-replication", `{"primary":true}`), args("xen-set-replication", `{"enable":1,"primary":true}`), args("xen-set-replication", `{"enable":true,"primary":"x"}`), args("xen-set-replication", `{"enable":true,"primary":true,"failover":true}`), args("xen-set-replication", `{"enable":false,"primary":true,"failover":null}`),
		args("migrate-set-capabilities", `{}`), args("migrate-set-capabilities", `{"capabilities":[]}`), args("migrate-set-capabilities", `{"capabilities":{}}`), args("migrate-set-capabilities", `{"capabilities":[[]]}`), args("migrate-set-capabilities", `{"capabilities":[{}]}`), args("migrate-set-capabilities", `{"capabilities":[{"capability":"x-colo","state":1}]}`), args("migrate-set-capabilities", `{"capabilities":[{"capability":"no","state":true}]}`), args("migrate-set-capabilities", `{"capabilities":[{"capability":1,"state":true}]}`), args("migrate-set-capabilities", `{"capabilities":[{"capability":"x-colo","state":false},{"capability":"x-colo","state":false,"x":1}]}`),
		args("migrate-set-parameters", `{"x-checkpoint-delay":-1}`), args("migrate-set-parameters", `{"x-checkpoint-delay":4294967296}`), args("migrate-set-parameters", `{"x-checkpoint-delay":18446744073709551616}`), args("migrate-set-parameters", `{"x-checkpoint-delay":1.0}`), args("migrate-set-parameters", `{"x-checkpoint-delay":"1"}`), args("migrate-set-parameters", `{"x-checkpoint-delay":null}`), args("migrate-set-parameters", `{"x-checkpoint-delay":[]}`), args("migrate-set-parameters", `{"nope":1}`), args("migrate-set-parameters", `{"x-checkpoint-delay":"x","nope":1}`),
		args("balloon", `{"value":1.5}`), args("balloon", `{"value":"1"}`), args("balloon", `{"value":9223372036854775808}`), args("balloon", `{"value":-1}`), args("device_del", `{"id":"x"}`), args("device_del", `{"id":true}`), args("query-status", `{"x":{}}`), args("stop", `{"now":true}`), args("x-colo-lost-heartbeat", `{}`), args("query-colo-status", `{"":1}`),
		// More than one in a line, one over many lines.
		name("1") + name("2"), name("1") + " " + name("2") + "\n", name("1") + "," + name("2"), name("1") + "}" + name("2"), name("1") + "x" + name("2"), "{\n\"execute\"\n:\r\n\t'query-name'\n}\n", "\r\n\r\n" + name("1") + "\r\n", name("[1,\n2\n]"),
		// Good commands in between.
		`{"execute":"query-status"}{"execute":"stop"}{"execute":"stop"}{"execute":"query-status"}{"execute":"cont"}{"execute":"cont"}`,
		`{"execute":"query-version"}{"execute":"query-colo-status"}{"execute":"query-jobs"}{"execute":"query-migrate"}{"execute":"query-xen-replication-status"}`,
		`{"execute":"query-migrate-capabilities"}`, `{"execute":"xen-colo-do-checkpoint"}`, `{"execute":"system_reset"}`, `{"execute":"yank","arguments":{"instances":[]}}`, `{"execute":"migrate-pause"}`,
	}
	for _, depth := range []int{1, 2, 1022, 1023, 1024, 1025, 1030} {
		all = append(all, strings.Repeat("[", depth)+strings.Repeat("]", depth), strings.Repeat(`{"a":`, depth)+"1"+strings.Repeat("}", depth), name(strings.Repeat("[", depth)+strings.Repeat("]", depth)))
	}
	return append(all, name(`"`+strings.Repeat("x", 20000)+`"`), strings.Repeat("x", 20000)+" ", strings.Repeat("x", 1006)+" ", `"`+strings.Repeat("x", 5000)+"\n", `{"execute":"`+strings.Repeat("x", 5000)+`"}`, strings.Repeat("1", 5000)+" ", `{"`+strings.Repeat("k", 10000)+`":1}`, "["+strings.Repeat("1,", 5000)+"]")
}

// random puts pieces of JSON together.
func random(r *rand.Rand) string {
	pieces := []string{"{", "}", "[", "]", ":", ",", `"a"`, `'b'`, `"id"`, `"execute"`, `"query-name"`, "1", "-", "0", ".", "e", "5", "true", "null", "x", " ", "\n", "\r", "\t",
		`"\ud83d\ude00"`, `"\ud83d"`, `\`, `"`, "'", "\x00", "\x01", "\xff", "\xfe", "\xc3", "é", "#", `{"execute":"query-name","id":`, `{"id":[`, "1e400", "18446744073709551616", "01", "-0.0", `"arguments":{`, `"exec-oob"`}
	var b strings.Builder
	for range 1 + r.IntN(14) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

var randomInputs = flag.Int("random", 100, "how many random inputs of each kind a QEMU and the server are compared with")

func TestAQEMUAndTheServerGiveTheSameAnswers(t *testing.T) {
	qemu := emulator(t)
	_, s := newHost()
	s.Version.Package = build(t, qemu)
	ours := listen(t, s)
	corpus := append(malformed(), odd()...)
	if len(corpus) < 60 {
		t.Fatalf("%d inputs", len(corpus))
	}
	r := rand.New(rand.NewPCG(7, uint64(*randomInputs)))
	for range *randomInputs {
		corpus = append(corpus, random(r), oddArguments(r), oddID(r))
	}
	for _, negotiate := range []bool{true, false} {
		for i, in := range corpus {
			if !negotiate && i%3 != 0 {
				continue
			}
			want, err := answers(qemu, negotiate, in)
			if err != nil {
				t.Fatalf("QEMU: %.200q: %q, %v", in, want, err)
			}
			got, err := answers(ours, negotiate, in)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("negotiated %t: %.200q\ngot  %.700q %v\nwant %.700q", negotiate, in, got, err, want)
			}
		}
	}
	t.Logf("%d inputs", len(corpus))
}

// A command out of band is answered by who reads it, and each of these inputs has one command.
func TestAQEMUAndTheServerGiveTheSameAnswersOutOfBand(t *testing.T) {
	qemu := emulator(t)
	_, s := newHost()
	s.Version.Package = build(t, qemu)
	ours := listen(t, s)
	corpus := odd()
	r := rand.New(rand.NewPCG(8, uint64(*randomInputs)))
	for range *randomInputs {
		corpus = append(corpus, oddArguments(r), oddID(r), strings.Replace(oddArguments(r), `"execute"`, `"exec-oob"`, 1))
	}
	const enable = `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`
	for _, in := range corpus {
		want, err := answersAfter(qemu, enable, in)
		if err != nil {
			t.Fatalf("QEMU: %.200q: %q, %v", in, want, err)
		}
		got, err := answersAfter(ours, enable, in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%.200q\ngot  %.700q %v\nwant %.700q", in, got, err, want)
		}
	}
}
