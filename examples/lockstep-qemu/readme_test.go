package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/tied"
)

// pageCommand is a command of the README's page for the first time.
type pageCommand struct {
	host   string // primary or standby
	line   string // for a shell
	stays  bool   // it runs until it is ended
	expect string // it is given again until it says this
}

// pageCommands reads the code block below the README's heading "Ten commands": a
// comment of its own line says where what follows is typed, one behind a command what
// it says in the end.
func pageCommands(t *testing.T) (list []pageCommand) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, found := strings.Cut(string(text), "\n## Ten commands\n")
	if !found {
		t.Fatal("there is no heading \"Ten commands\"")
	}
	page, _, _ = strings.Cut(page, "\n## ")
	page = strings.ReplaceAll(page, "\\\n", "")
	says := regexp.MustCompile(`^(.*\S) +# until it says "(.*)"$`)
	var hosts []string
	for line := range strings.Lines(page) {
		line, isCode := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		switch {
		case !isCode:
			continue
		case strings.HasPrefix(line, "# on both"):
			hosts = []string{"primary", "standby"}
			continue
		case strings.HasPrefix(line, "# on the "):
			hosts = []string{strings.TrimPrefix(line[:strings.Index(line, "'")], "# on the ")}
			continue
		}
		c := pageCommand{line: line}
		if m := says.FindStringSubmatch(line); m != nil {
			c.line, c.expect = m[1], m[2]
		}
		c.line, c.stays = strings.CutSuffix(c.line, "&")
		for _, c.host = range hosts {
			list = append(list, c)
		}
	}
	return list
}

// Whoever types what the README says has a protected guest with a disk, sees it killed
// and sees it back: two directories are the two hosts.
func TestTheTenCommandsOfTheREADMEBringAGuestBack(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	all := pageCommands(t)
	typed := 0
	for i, c := range all {
		if i == 0 || all[i-1].line != c.line {
			typed++
		}
	}
	if typed != 10 {
		t.Fatalf("%d commands: %+v", typed, all)
	}
	root := qemutest.Dir(t)
	hosts := map[string]string{"primary": filepath.Join(root, "primary"), "standby": filepath.Join(root, "standby")}
	for _, dir := range hosts {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	emptyDisk(t, hosts["primary"], "disk0.img")
	qemutest.FirmwareArgs(t, root, "pc", 16, qemutest.DiskFirmware()) // whose firmware is used below
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// No other process listens at this address of loopback.
	address := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), 1+rand.IntN(254), 1+rand.IntN(254))
	table := map[string]string{ // what is otherwise here
		"go build -o lockstep-qemu .": "ln -s " + self + " lockstep-qemu",
		"0.0.0.0:":                    address + ":",
		"STANDBY:":                    address + ":",
		"disk0.img 10G":               fmt.Sprintf("disk0.img %d", diskBytes),
		"-m 1024":                     "-m 16 -bios " + filepath.Join(root, "bios") + " -serial file:serial", // a guest that counts
		"-stay":                       "-stay -stall 1m -silence 1m",                                         // nothing hangs but a busy machine
		"-rehearse":                   "-rehearse -peer-timeout 1m",
	}
	used := make(map[string]bool)
	var seen []uint32 // what the guest had printed before it was protected
	for _, c := range all {
		line := c.line
		for was, is := range table {
			used[was] = used[was] || strings.Contains(line, was)
			line = strings.ReplaceAll(line, was, is)
		}
		if strings.Contains(line, "protect") {
			seen = qemutest.AwaitSerial(t, hosts["primary"], 5)
		}
		typeIn(t, hosts[c.host], line, c)
	}
	for was := range table {
		if !used[was] {
			t.Errorf("the page does not have %q", was)
		}
	}
	last := seen[len(seen)-1]
	first := counts(t, hosts["standby"], last)
	if list := qemutest.Serial(hosts["primary"]); first > list[len(list)-1]+2*qemutest.Every {
		t.Errorf("it begins at %#x, and the primary had come to %#x only", first, list[len(list)-1])
	}

	qemutest.Monitor(t, filepath.Join(hosts["standby"], "standby", "qmp")).Do(t.Context(), "quit", nil, nil)
	list := qemutest.Serial(hosts["standby"])
	image, err := os.ReadFile(filepath.Join(hosts["standby"], "disk0.img"))
	if err != nil {
		t.Fatal(err)
	}
	goesWith(t, filepath.Join(hosts["standby"], "disk0.img"), max(list[len(list)-1], slices.Max(numbers(image))))
}

// typeIn gives a command to a shell in a directory.
func typeIn(t *testing.T, dir, line string, c pageCommand) {
	t.Helper()
	shell := func(ctx context.Context, line string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), programEnv+"=1")
		return cmd
	}
	if c.stays {
		cmd := shell(context.WithoutCancel(t.Context()), "exec "+line)
		said, err := os.CreateTemp(dir, "said") // a file: the QEMU of a standby that is killed may have it, too
		if err != nil {
			t.Fatal(err)
		}
		defer said.Close()
		cmd.Stdout, cmd.Stderr = said, said
		release, err := tied.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			release()
			if t.Failed() {
				words, _ := os.ReadFile(said.Name())
				t.Logf("%s said:\n%s", line, words)
			}
		})
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		out, err := shell(ctx, line).CombinedOutput()
		switch {
		case err == nil && bytes.Contains(out, []byte(c.expect)):
			return
		case c.expect == "" || ctx.Err() != nil:
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
