package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// A log is the output of one go test -v. Only what the package testing itself prints
// counts, by where it stands in its line: the tests here print the output of tests that ran
// inside their machines, and that of guests, which may contain any words.
type log struct {
	order  []string // tests, as they began
	result map[string]string
	said   map[string][]string // what each test printed, a line each
	kinds  map[string]string   // spoilt or doubtful, as the test itself says it, with evidence
	panics string              // the line of a panic of the test binary
}

var (
	// A test begins.
	begins = regexp.MustCompile(`^=== RUN   (\S+)$`)
	// What follows is of this test.
	turns = regexp.MustCompile(`^=== (?:RUN|PAUSE|CONT|NAME)  +(\S+)$`)
	// A test has ended. A subtest stands four places further in than what it is a part of.
	ends = regexp.MustCompile(`^( *)--- (PASS|FAIL|SKIP): (\S+) \([0-9.]+s\)$`)
	// The world of a test says what its failure is.
	says = regexp.MustCompile(`^    world_linux_test\.go:[0-9]+: (spoilt by the emulator|in doubt): (\S+): `)
)

// read reads a log.
func read(r io.Reader) (*log, error) {
	l := &log{result: make(map[string]string), said: make(map[string][]string), kinds: make(map[string]string)}
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20) // a console may be one line
	now := ""
	for in.Scan() {
		line := strings.TrimSuffix(in.Text(), "\r")
		if m := begins.FindStringSubmatch(line); m != nil {
			if _, known := l.result[m[1]]; known {
				return nil, fmt.Errorf("%s began twice", m[1])
			}
			l.order, l.result[m[1]] = append(l.order, m[1]), ""
		}
		if m := turns.FindStringSubmatch(line); m != nil {
			now = m[1]
			continue
		}
		if m := ends.FindStringSubmatch(line); m != nil && len(m[1]) == 4*strings.Count(m[3], "/") {
			if was, known := l.result[m[3]]; known && was == "" {
				l.result[m[3]] = m[2]
				continue
			}
		}
		if m := says.FindStringSubmatch(line); m != nil && m[2] == now {
			l.kinds[now] = map[string]string{"in doubt": "doubtful", "spoilt by the emulator": "spoilt"}[m[1]]
		}
		if strings.HasPrefix(line, "panic: ") && l.panics == "" {
			l.panics = line
		}
		l.said[now] = append(l.said[now], line)
	}
	return l, in.Err()
}

// whole returns an error unless each test that began has ended.
func (l *log) whole() error {
	switch {
	case l.panics != "":
		return errors.New(l.panics)
	case len(l.order) == 0:
		return errors.New("no test has run")
	}
	for _, name := range l.order {
		if l.result[name] == "" {
			return fmt.Errorf("%s has not ended", name)
		}
	}
	return nil
}

// failures returns the tests that failed, but not those that failed only because one of
// their subtests did.
func (l *log) failures() []string {
	var names []string
	for _, name := range l.order {
		if l.result[name] == "FAIL" && !l.parts(name) {
			names = append(names, name)
		}
	}
	return names
}

// parts reports whether a subtest of a test failed. The test's own failure is then taken
// for that of the subtest: the tests here that have subtests do nothing else.
func (l *log) parts(name string) bool {
	for other, result := range l.result {
		if result == "FAIL" && strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// kind returns what the failure of a test is: failed, unless the test has evidence or doubt.
func (l *log) kind(name string) string {
	if k := l.kinds[name]; k != "" {
		return k
	}
	return "failed"
}
