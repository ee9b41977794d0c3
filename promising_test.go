package lockstep_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promising are words that promises are made with.
var promising = regexp.MustCompile(`(?i)\b(never|always|nothing|nobody|none|neither|each|every|everything|refuses?|refused|bounded|no|cannot|exactly)\b`)

var (
	program  = regexp.MustCompile("(?s)```.*?\n```|(?m)^(?:    |#|<)[^\\n]*$")
	endOfOne = regexp.MustCompile(`[.?!][*)]*\s+`)
)

// sentences returns those of a page, each as a line: of its paragraphs, its lists and the
// cells of its tables, and not of its programs.
func sentences(page string) (list []string) {
	var block []string
	flush := func() {
		text := strings.Join(strings.Fields(strings.Join(block, " ")), " ")
		block = block[:0]
		for text != "" {
			end := len(text)
			if at := endOfOne.FindStringIndex(text); at != nil {
				end = at[1]
			}
			list = append(list, strings.TrimSpace(text[:end]))
			text = text[end:]
		}
	}
	for line := range strings.SplitSeq(program.ReplaceAllString(page, ""), "\n") {
		line = strings.TrimSpace(line)
		if cells, ok := strings.CutPrefix(line, "| "); ok {
			for cell := range strings.SplitSeq(strings.TrimSuffix(cells, "|"), " | ") {
				flush()
				block = append(block, cell)
			}
			flush()
			continue
		}
		item, ok := strings.CutPrefix(line, "- ")
		if ok || line == "" {
			flush()
		}
		block = append(block, item)
	}
	flush()
	return list
}

// judged are sentences with such a word that are not on record among the promises, as they
// begin, by the reason why no test has to fail without them.
var judged = map[string]map[string][]string{
	"says what a word or a page means, or what a program has": {
		"README.md": {
			"On two hosts each has a port, a job and a certificate,",
			"Two hosts, a process each, protect a guest by",
			"`-mode compare`: no flow is given up that never agrees.",
			"`-mode continuous`: nothing is compared.",
			"`-timeline FILE.svg` draws the run;",
			"A guest that nobody protects moves to another host",
			"The survivor is protected again when the other comes back,",
			"[Its page](examples/lockstep-qemu/README.md) has ten commands",
		},
		"docs/operations.md": {
			"from one checkpoint to the next, if nothing asks earlier",
			"how long a monitor's client may take nothing",
			"`CheckpointDelay` is how long output of a `protect.NIC` waits",
			"the hosts from each other; both reach the arbiter",
			"both from the arbiter, not from each other",
			"everything",
			"A host that was refused, that comes back,",
			"`refused`: the other host has the guest;",
		},
		"docs/security.md": {
			"It is trusted with everything.",
			"**The arbiter** is trusted with the question who goes on,",
			"nothing: a stream is hostile input",
			"**An operator's `Fenced` and `Failover`**, where no arbiter is configured,",
		},
		"docs/architecture.md": {"`proxy` and `replication` each declare the `Gate`"},
	},
	"says what an operator is to do": {
		"docs/operations.md": {
			"It needs `lookupcache=none`",
			"Does the other host have the guest, or its images, nothing here is needed.",
			"Is the other host lost for good, bring each disk back to its own checkpoint,",
			"nothing; state, reason, generation and peer are in it",
			"nothing: the first synchronisation",
			"nothing: cause, pause and size of each checkpoint",
			"nothing: the guest stands still, or runs",
			"`asked`, `granted`: nothing.",
			"nothing once; often for one flow:",
			"nothing: a flow that the guests never agree about",
			"nothing",
		},
	},
	"says what is not done, not known or not prevented": {
		"README.md": {"It cannot be a COLO primary"},
		"docs/operations.md": {
			"Two hosts that lose each other cannot find out alone",
			"It cannot where one of the journals was restored,",
			"Each disk is whole then, as after a power cut,",
			"the loss of the majority, while it lasts;",
			"A leader that hears its clients, and not the other members, decides nothing;",
			"everything that leaves the operator able to look",
			"Nothing but the operator prevents it",
			"A stock QEMU cannot be told of an end on purpose,",
			"Only the process that has opened a disk knows how far its copy is,",
			"A guest whose vCPU waits for its disk at a shut gate cannot be paused",
			"No verb ends the job and leaves the guest running:",
			"One that has run is spoilt by that:",
		},
		"docs/security.md": {
			"nothing of their own: they take a connection from the host,",
			"It asks nobody for a password",
			"Nothing is encrypted at rest",
			"Over TCP nothing",
			"With `Insecure` neither is a protection against somebody who listens.",
			"Enough handshakes cost processor time;",
			"The guest's memory is in clear in the memory of both processes;",
		},
	},
	"says how something was tested; the tests stand in the sentence's own section, or in .ci/run": {
		"README.md": {
			"`-kill-at each` kills before every step of a checkpoint,", // step examples counts the runs
			"An ordinary TCP client outside sees its streams go on unbroken,",
			"Where the host has no KVM, the suites of",
			"Run in every test of it: streams of the machines none, pc, q35",
			"Not run here, but for 10.0.2:",
			"Not run: there was no such machine.",
		},
	},
	"follows from what others are: the requirements of Go, the rules of a list, an interface without a way": {
		"README.md": {
			"The first needs Linux and Go, nothing else.", // the root module, whose imports are tested
			"The Go release in go.mod and every later one are supported.",
			"The library is written from facts about QEMU's formats",
		},
		"docs/security.md": {
			"It cannot:", // the list that follows is on record
		},
	},
}

func TestEverySentenceThatSoundsLikeAPromiseIsJudged(t *testing.T) {
	for _, page := range []string{"README.md", "docs/operations.md", "docs/security.md", "docs/architecture.md"} {
		text := read(t, page)
		words := strings.Join(strings.Fields(text), " ")
		type span struct{ begin, end int }
		var recorded []span
		for _, p := range promises {
			if at := strings.Index(words, p.sentence); p.page == page && at >= 0 {
				recorded = append(recorded, span{at, at + len(p.sentence)})
			}
		}
		used := map[string]bool{}
		at := 0
		for _, s := range sentences(text) {
			next := strings.Index(words[at:], s)
			if next < 0 {
				t.Fatalf("%s does not have %q as a sentence", page, s)
			}
			at += next
			end := at + len(s)
			on := slices.ContainsFunc(recorded, func(r span) bool { return r.begin < end && r.end > at })
			var reasons []string
			for reason, of := range judged {
				for _, begin := range of[page] {
					// A whole cell may be but a word, with which others begin.
					if begin == s || strings.Contains(begin, " ") && strings.HasPrefix(s, begin) {
						reasons = append(reasons, reason)
						used[begin] = true
					}
				}
			}
			switch {
			case on && len(reasons) > 0:
				t.Errorf("%s: %q is on record among the promises and judged to be none", page, s)
			case !on && len(reasons) == 0 && promising.MatchString(s):
				t.Errorf("%s: does this promise something? Then put it on record in promises_test.go, with its tests; else among those judged: %q", page, s)
			}
			at = end
		}
		for _, of := range judged {
			for _, begin := range of[page] {
				if !used[begin] {
					t.Errorf("%s has no sentence that begins with %q", page, begin)
				}
			}
		}
	}
}

func TestSentencesAreThoseOfParagraphsListsAndCells(t *testing.T) {
	page := "# No title\n\nOne is\nlong. **Two.** Three: no end\n\n- Item a; `x.Y` of it.\n  More.\n- Item b\n\n" +
		"| head | next |\n| --- | --- |\n| cell. Two | `a` |\n\n```go\nnever()\n```\n    go run nothing\n"
	want := []string{"One is long.", "**Two.**", "Three: no end", "Item a; `x.Y` of it.", "More.", "Item b", "head", "next", "---", "---", "cell.", "Two", "`a`"}
	if got := sentences(page); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
