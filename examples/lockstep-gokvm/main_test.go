package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/examples/internal/arbiter/arbitertest"
	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) {
	arbitertest.Main()
	goleak.VerifyTestMain(m)
}

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
		{"boot -kernel k -peer a:1", "-peer: an unprotected guest"},
		{"boot -kernel k -arbiter true", "-arbiter: an unprotected guest"},
		{"boot -kernel k -qmp unix:q", "-qmp: an unprotected guest"},
		{"primary -kernel k", "a primary needs -peer"},
		{"primary -peer a:1", "primary needs -kernel"},
		{"primary -peer a:1 -kernel k -insecure -http-control", "-http-control is for the page of -http"},
		{"primary -peer a:1 -kernel k -journal j", "-journal without -disk"},
		{"primary -peer a:1 -kernel k -term 1ms", "-term 1ms: want at least"},
		{"primary -peer a:1 -kernel k -arbiter file:", `-arbiter "file:": want file:DIR`},
		{"primary -peer a:1 -kernel k -arbiter etcd:", `-arbiter "etcd:": want file:DIR`},
		{"primary -peer a:1 -kernel k -arbiter nfs:/x", `-arbiter "nfs:/x": want file:DIR`},
		{"primary -peer a:1 -kernel k -arbiter File:/x", `-arbiter "File:/x": want file:DIR`},
		{"primary -peer a -kernel k -insecure", "-peer a: want HOST:PORT"},
		{"primary -peer :1 -kernel k -insecure", "-peer :1: want HOST:PORT"},
		{"primary -peer a:0 -kernel k -insecure", `-peer a:0: want HOST:PORT, and "0" is no port`},
		{"primary -peer fe80::1 -kernel k -insecure", "-peer fe80::1: want HOST:PORT"},
		{"secondary -listen a:70000 -insecure", `-listen a:70000: want HOST:PORT, and "70000" is no port`},
		{"primary -peer a:1 -listen a:1 -kernel k -insecure", "-peer a:1: want the address of the other host"},
		{"primary -peer a:1 -kernel k -insecure -name=", "-name: want 1 to 255 bytes"},
		{"primary -peer a:1 -kernel k -insecure -host " + strings.Repeat("h", 256), "-host: want at most 255 bytes"},
		{"primary -peer a:1 -kernel k -arbiter true -arbiter-command true", "want one of them"},
		{"primary -peer a:1 -kernel k -cert c -key k", "belong together"},
		{"primary -peer a:1 -kernel k -cert c -key k -ca a -insecure", "contradict"},
		{"primary -peer a:1 -kernel k -peer-name b -insecure", "-peer-name and -insecure contradict"},
		{"secondary -listen a:1 -cert c -key k -ca a", "-cert needs -peer-name"},
		{"secondary -listen a:1", "or -insecure"},
		{"primary -peer a:1 -kernel k", "or -insecure"},
		{"primary -peer a:1 -kernel k -checkpoint-timeout 10ms", "-checkpoint-timeout 10ms"},
		{"primary -peer a:1 -kernel k -interval 0s", "-interval 0s"},
		{"primary -peer a:1 -kernel k -min-interval 2s", "-min-interval 2s"},
		{"primary -peer a:1 -kernel k -beat 2s", "-beat 2s -lost-after 2s"},
		{"primary -peer a:1 -kernel k -resume f", "want one of them"},
		{"secondary -listen a:1 -resume f", "-resume is a primary's"},
		{"primary -peer a:1 -kernel k -lazy", "-lazy without -resume"},
		{"primary -peer a:1 -kernel k -resume-generation 2", "-resume-generation without -resume"},
		{"primary -peer a:1 -resume f -lazy -resume-generation 2", "without -lazy"},
		{"boot -kernel k -lazy", "-lazy: an unprotected guest"},
		{"boot -kernel k -save f", "-save: an unprotected guest has none; primary"},
		{"secondary", "a secondary needs -listen"},
		{"secondary -listen a:1 -append x", "-append without -kernel"},
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
		if status != 2 || out != "" || strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "lockstep-gokvm: ") || !strings.Contains(err, c.want) {
			t.Errorf("lockstep-gokvm %s: status %d, %q, %q; want %q", c.args, status, out, err, c.want)
		}
	}
}

func TestHelpExplainsTwoHosts(t *testing.T) {
	for _, args := range []string{"-h", "primary -h"} {
		status, out, err := gokvmSays(strings.Fields(args)...)
		if status != 0 || err != "" {
			t.Errorf("%s: status %d, %q", args, status, err)
		}
		for _, want := range []string{"lockstep-gokvm secondary -listen 10.0.0.2:7654", "-arbiter", "Ctrl-A x", "-lost-after", "-arbiter-command", "-qmp", "-tap"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not mention %q", args, want)
			}
		}
	}
}

func TestWhatCannotBeUsedIsNamedByItsFlagInOneLine(t *testing.T) {
	require.Usable(t, require.KVM, thisHost.probe) // which is looked at first
	is, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for by, args := range map[string][]string{
		"-kernel":       {"boot", "-kernel", "/does/not/exist"},
		"-initrd":       {"boot", "-kernel", is, "-initrd", "/does/not/exist"},
		"-kernel " + is: {"boot", "-kernel", is}, // which is no kernel
		"-listen":       {"secondary", "-insecure", "-peer", "127.0.0.1:1", "-listen", taken.Addr().String()},
	} {
		status, _, err := gokvmSays(args...)
		if status != 1 || strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "lockstep-gokvm: "+by+": ") {
			t.Errorf("status %d, %q, want %s", status, err, by)
		}
	}
}
