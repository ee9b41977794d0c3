package main

import (
	"regexp"
	"strings"
)

// How much of each kind is shown, and how much of a line.
const (
	mostRecords = 14
	mostOdd     = 12
	mostTold    = 4

	recordLength = 1500
	oddLength    = 300
	toldLength   = 800
)

var (
	// The first line of what a test logs; a dump of a console is one record.
	record = regexp.MustCompile(`^ +[a-z_]+_test\.go:[0-9]+: `)
	// What a kernel, gokvm or a shell says when something is wrong.
	odd = regexp.MustCompile(`panic|BUG:|Oops|triple fault|ended with [1-9]|error`)
	// What the machine's kernel knows of a triple fault.
	told = regexp.MustCompile(`triple fault: `)
)

// why returns the last things that a test said, and what is odd in what its machines
// printed.
func (l *log) why(name string) []string {
	var records, odds, tolds []string
	for _, line := range l.said[name] {
		text := strings.TrimLeft(line, " ")
		switch {
		case record.MatchString(line):
			records = append(records, cut(text, recordLength))
		case told.MatchString(line):
			tolds = append(tolds, "the machine: "+cut(text, toldLength))
		case odd.MatchString(line):
			odds = append(odds, "console: "+cut(text, oddLength))
		}
	}
	why := records[max(0, len(records)-mostRecords):]
	why = append(why, odds[:min(mostOdd, len(odds))]...)
	return append(why, tolds[:min(mostTold, len(tolds))]...)
}

func cut(s string, n int) string { return s[:min(n, len(s))] }
