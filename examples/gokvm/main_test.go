package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gokvmSays runs the program as far as it gets without a guest.
func gokvmSays(args ...string) (status int, out, err string) {
	var o, e bytes.Buffer
	status = gokvm(context.Background(), args, stdio{strings.NewReader(""), &o, &e})
	return status, o.String(), e.String()
}

func TestABadCommandLineIsOneLineAndStatus2(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "want boot, primary or secondary"},
		{"start", "start: want boot"},
		{"boot", "boot needs -kernel"},
		{"boot -kernel k extra", `unexpected argument "extra"`},
		{"boot -kernel k -peer a:1", "-peer is for the primary"},
		{"boot -kernel k -arbiter true", "-arbiter: an unprotected guest"},
		{"primary -kernel k", "a primary needs -peer"},
		{"primary -peer a:1", "primary needs -kernel"},
		{"primary -peer a:1 -kernel k -journal j", "-journal is for the secondary"},
		{"primary -peer a:1 -kernel k -interval 0s", "-interval 0s"},
		{"primary -peer a:1 -kernel k -min-interval 2s", "-min-interval 2s"},
		{"primary -peer a:1 -kernel k -beat 2s", "-beat 2s -lost-after 2s"},
		{"secondary", "a secondary needs -listen"},
		{"secondary -listen a:1 -kernel k", "-kernel: a secondary's guest comes from the primary"},
		{"secondary -listen a:1 -journal j", "-journal without -disk"},
		{"secondary -listen a:1 -overlay 10K", "-overlay 10K"},
		{"boot -kernel k -mem 1000", "-mem 1000: want whole megabytes"},
		{"boot -kernel k -mem 4G", "-mem 4G: want whole megabytes, 32M to 3G"},
		{"boot -kernel k -mem x", "want a number of bytes"},
		{"boot -kernel k -vcpus 9", "-vcpus 9: want 1 to 8"},
		{"boot -kernel k -mac 01:00:00:00:00:00", "-mac 01:00"},
		{"boot -kernel k -mac no", "-mac no"},
		{"boot -kernel k -tap a-very-long-name", "-tap a-very-long-name"},
		{"boot -kernel k -progress -1s", "-progress -1s"},
		{"boot -nothing", "flag provided but not defined"},
	} {
		status, out, err := gokvmSays(strings.Fields(c.args)...)
		if status != 2 || out != "" || strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "gokvm: ") || !strings.Contains(err, c.want) {
			t.Errorf("gokvm %s: status %d, %q, %q; want %q", c.args, status, out, err, c.want)
		}
	}
}

func TestHelpExplainsTwoHosts(t *testing.T) {
	for _, args := range []string{"-h", "primary -h"} {
		status, out, err := gokvmSays(strings.Fields(args)...)
		if status != 0 || err != "" {
			t.Errorf("%s: status %d, %q", args, status, err)
		}
		for _, want := range []string{"gokvm secondary -listen 10.0.0.2:7654", "-arbiter", "Ctrl-A x", "-lost-after"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not mention %q", args, want)
			}
		}
	}
}

func TestAFileThatIsNotThereIsOneLineAndStatus1(t *testing.T) {
	status, _, err := gokvmSays("boot", "-kernel", "/does/not/exist")
	if status != 1 || strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "gokvm: ") {
		t.Errorf("status %d, %q", status, err)
	}
}

func TestSizesReadAsTheyAreWritten(t *testing.T) {
	for _, s := range []string{"0", "1", "1000", "4K", "512M", "3G"} {
		var v size
		if err := v.Set(s); err != nil || v.String() != s {
			t.Errorf("%s: %v, %v", s, v, err)
		}
	}
	for _, s := range []string{"", "M", "-1", "1.5G", "99999999999999999999", "18446744073709551615G"} {
		if new(size).Set(s) == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
