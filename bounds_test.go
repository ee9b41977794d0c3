package lockstep_test

import (
	"fmt"
	"go/ast"
	numeric "go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A bound is a number of docs/security.md: where the code has it, and the tests that
// fail without it.
type bound struct {
	dir string
	// name is a constant of the package in dir, or a field there whose default is a
	// constant expression.
	name  string
	tests []string // "dir.TestName"; the dir may be left out if it is that of the bound
}

// bounds are the rows of the table "What is bounded" by the words that they begin with. The
// numbers of a row stand in the order of its bounds.
var bounds = map[string][]bound{
	"device state of a checkpoint": {{"colo", "MaxDeviceState", []string{"TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible"}}},
	"a PACKAGED command":           {{"vmstate", "maxPackaged", []string{"TestAPackageIsAtMostAsLongAsItMayBe", "TestHostileLengthsTakeLittleMemory"}}},
	"machine type": {
		{"vmstate", "maxMachineName", []string{"TestWhatAStreamSaysOfItselfIsBounded"}},
		{"vmstate", "maxCapabilities", []string{"TestWhatAStreamSaysOfItselfIsBounded"}},
		{"vmstate", "maxDescDepth", []string{"TestWhatAStreamSaysOfItselfIsBounded"}},
	},
	"a `vmstate.Document`": {
		{"vmstate", "maxRecords", []string{"TestTheRecordsOfADocumentAreBounded"}},
		{"vmstate", "maxDocument", []string{"TestTheBytesOfADocumentAreBounded"}},
	},
	"pages of a checkpoint": {{"vmstate/ram", "", []string{"TestBadInput", "colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing"}}},
	"a standby": {
		{"colo/standby", "MaxRAM", []string{"TestAnInitialMigrationThatCannotBeKeptIsRefused"}},
		{"vmstate", "maxPackaged", []string{"colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing"}},
	},
	"a hello of": {
		{"colo/protect", "maxHello", []string{"TestWhatIsNoHelloIsRefused"}},
		{"colo/protect", "maxList", []string{"TestWhatIsNoHelloIsRefused"}},
		{"colo/protect", "maxDisks", []string{"TestAHelloHasAtMostSoManyOfEach"}},
		{"colo/protect", "maxNote", []string{"TestNoteIsBounded"}},
	},
	"NBD": {
		{"replication/nbd", "MaxRequest", []string{"TestRequestsBeyondTheLimitsAreRefusedAndTheConnectionGoesOn"}},
		{"replication/nbd", "MaxBytes", []string{"TestRequestsUnderWayAreBoundedInNumberAndBytes", "TestRequestsThatComeTogetherAreOfNoMoreBytesThanASessionMayHave"}},
		{"replication/nbd", "MaxTotalBytes", []string{"TestMemoryIsBoundedOverAllConnections"}},
		{"replication/nbd", "MaxConns", []string{"TestFullServerLetsInWhoComesNextWhenSomebodyLeaves"}},
		{"replication/nbd", "maxName", []string{"TestANameIsAtMostAsLongAsItMayBe", "TestAQueryHasNamesAsLongAsTheyMayBe"}},
	},
	"a disk, whatever":            {{"replication", "maxSize", []string{"TestDisksThatNoMemoryIsEnoughForAreRefused"}}},
	"how long the other host can": {{"colo/protect", "DefaultMaxSize", []string{"TestADiskThatTheOtherHostCannotMakeLongerStaysAsItIs"}}},
	"a packet between the hosts": {
		{"colo/filter", "MaxFrame", []string{"TestGreatestFrameIsCarried", "colo/compare.TestOversizedFrame"}},
		{"colo/filter", "MaxVNetHdr", []string{"TestBadFramesAreErrorsThatSayWhere"}},
	},
	"the comparison": {
		{"colo/compare", "MaxConns", []string{"TestLimitsHoldAndAskAndLoseNothing"}},
		{"colo/compare", "MaxBytes", []string{"TestLimitsHoldAndAskAndLoseNothing"}},
	},
	"output that waits": {{"colo/filter", "Limit", []string{"TestFullBufferLeavesThePacketWithTheDevice"}}},
	"a secondary's disk overlays": {{"replication", "defaultOverlayBytes",
		[]string{"TestActiveOverlayFullIsTheGuestsErrorAlone", "TestWriteForWhichThereIsNoRoomWaitsForACheckpoint"}}},
	"a page": {
		{"colo/protect/watch", "maxConnections", []string{"TestNoMoreConnectionsAreLetInThanThereMayBe"}},
		{"colo/protect/watch", "MaxViewers", []string{"TestTooManyWhoWatchAreToldToComeBack"}},
	},
	"a monitor": {
		{"event/qmp", "DefaultMaxClients", []string{"TestOfTooManyClientsTheLastWaitsUntilOneLeaves"}},
		{"event/qmp", "DefaultMaxValue", []string{"TestACommandIsAtMostAsLongAsItMayBe"}},
		{"event/qmp", "DefaultMaxBacklog", []string{"TestAnswersThatAreNotReadStopTheCommandsAndNoneIsLost"}},
		{"event/qmp", "DefaultMaxEvents", []string{"TestAClientThatDoesNotReadStallsNobodyAndIsClosed"}},
	},
	"a `qmp.Client`": {
		{"event/qmp", "MaxLine", []string{"TestWhatIsNoMonitorIsRefused"}},
		{"event/qmp", "MaxPending", []string{"TestNoMoreEventsAreKeptThanMayBe"}},
		{"event/qmp", "MaxPendingBytes", []string{"TestNoMoreBytesOfEventsAreKeptThanMayBe"}},
	},
}

// inSentences are the bounds of the page's sentences, where % stands for the number.
var inSentences = map[string]bound{
	"read a hello of at most %.":                       {"colo/protect", "maxHello", []string{"TestWhatIsNoHelloIsRefused"}},
	"At most % connections are at that at one time":    {"colo/protect", "maxGreeting", []string{"TestStrangersKeepNobodyOut"}},
	"for at most % s each; one more ends the oldest":   {"colo/protect", "greetTime", []string{"TestStrangersKeepNobodyOut"}},
	"bounded (% in the comparison and in the rewriter": {"colo/filter", "MaxConns", []string{"TestOnlyWhatTheGuestTakesMakesRoomForOthers", "TestTheTableIsBoundedAndEndedConnectionsGoFirst"}},
}

var (
	number = regexp.MustCompile(`\b([0-9][0-9,]*)( [KMGT]iB)?\b`)
	units  = map[string]int64{" KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30, " TiB": 1 << 40}
)

// numbers returns those of a text, in its order.
func numbers(text string) (list []int64) {
	for _, m := range number.FindAllStringSubmatch(text, -1) {
		var n int64
		fmt.Sscan(strings.ReplaceAll(m[1], ",", ""), &n)
		list = append(list, n*max(units[m[2]], 1))
	}
	return list
}

func TestWhatIsBoundedIsBoundedByTheCodeAndTested(t *testing.T) {
	page := read(t, "docs/security.md")
	_, table, _ := strings.Cut(page, "| input | bound |\n| --- | --- |\n")
	table, _, ok := strings.Cut(table, "\n\n")
	if !ok {
		t.Fatal("the page has no table of bounds")
	}
	seen, on := map[string]bool{}, newTestOn(t)
	for line := range strings.SplitSeq(table, "\n") {
		row := strings.Split(line, "|")
		var list []bound
		for begin, b := range bounds {
			if strings.HasPrefix(strings.TrimSpace(row[1]), begin) {
				list, seen[begin] = b, true
			}
		}
		written, n := numbers(row[2]), 0
		for _, b := range list {
			wantTested(on, b)
			if b.name == "" {
				continue
			}
			if n == len(written) || written[n] != value(t, b) {
				t.Errorf("%s of %s is %d, and the page has %v: %s", b.name, b.dir, value(t, b), written, line)
			}
			n++
		}
		if len(list) == 0 || n != len(written) {
			t.Errorf("nothing says where all the numbers of this row are in the code: %s", line)
		}
	}
	for begin := range bounds {
		if !seen[begin] {
			t.Errorf("the table has no row of %s", begin)
		}
	}
	words := strings.Join(strings.Fields(page), " ")
	for sentence, b := range inSentences {
		wantTested(on, b)
		before, after, _ := strings.Cut(sentence, "%")
		_, rest, ok := strings.Cut(words, before)
		if got := number.FindString(rest); !ok || !strings.HasPrefix(rest, got+after) || numbers(got + " ")[0] != value(t, b) {
			t.Errorf("the page does not say %q with the %d that %s has in %s", sentence, value(t, b), b.name, b.dir)
		}
	}
}

func wantTested(on *testOn, b bound) {
	on.t.Helper()
	for _, name := range b.tests {
		dir, test, ok := strings.Cut(name, ".")
		if !ok {
			dir, test = b.dir, name
		}
		on.want(dir, test, "the bound "+b.name+" of "+b.dir)
	}
}

// value returns what the code has for a bound; a duration counts in seconds.
func value(t *testing.T, b bound) int64 {
	t.Helper()
	found := int64(-1)
	for _, f := range sources(t, b.dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec: // name = 1 << 10
				for i, id := range n.Names {
					if id.Name == b.name && i < len(n.Values) {
						found = max(found, quantity(n.Values[i]))
					}
				}
			case *ast.AssignStmt: // cfg.Name = 1 << 10
				for i, x := range n.Lhs {
					if isField(x, b.name) && i < len(n.Rhs) {
						found = max(found, quantity(n.Rhs[i]))
					}
				}
			case *ast.CallExpr: // orDefault(cfg.Name, 1<<10), num(&c.Name, 1<<10)
				if len(n.Args) == 2 && isField(n.Args[0], b.name) {
					found = max(found, quantity(n.Args[1]))
				}
			}
			return true
		})
	}
	if found < 0 {
		t.Errorf("%s has no %s that is a number", b.dir, b.name)
	}
	return found
}

func isField(e ast.Expr, name string) bool {
	if u, ok := e.(*ast.UnaryExpr); ok {
		e = u.X
	}
	s, ok := e.(*ast.SelectorExpr)
	return ok && s.Sel.Name == name
}

// quantity evaluates a constant expression of numbers, or a duration in seconds, and returns
// -1 for any other.
func quantity(e ast.Expr) int64 {
	if v, err := types.Eval(token.NewFileSet(), nil, token.NoPos, types.ExprString(e)); err == nil && v.Value != nil {
		if n, ok := numeric.Int64Val(numeric.ToInt(v.Value)); ok {
			return n
		}
	}
	if d, err := duration(e); err == nil {
		return int64(d.Seconds())
	}
	return -1
}

// sources parses the Go files of a directory but its tests.
func sources(t *testing.T, dir string) (list []*ast.File) {
	t.Helper()
	for _, f := range byFile(t, dir) {
		list = append(list, f)
	}
	return list
}

// asParsed has what byFile has read, by directory, for the next test.
var asParsed = map[string]map[string]*ast.File{}

// byFile parses the Go files of a directory but its tests, by their names.
func byFile(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	dir = filepath.Clean(dir)
	if list, ok := asParsed[dir]; ok {
		return list
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]*ast.File{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list[filepath.Base(file)] = f
	}
	asParsed[dir] = list
	return list
}
