package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
)

// The demonstration starts this program again, for each host.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-host" {
		main()
	}
	os.Exit(m.Run())
}

func TestAnInterruptedDemonstrationSaysThatAndNotWhatItWaitedFor(t *testing.T) {
	if testing.Short() {
		t.Skip("starts two processes")
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := demo(ctx, nil, io.Discard, io.Discard); err == nil || err.Error() != "interrupted" {
		t.Errorf("it says %v", err)
	}
}

func TestClientNoticesNothingOfKillsStopsAndSwitchovers(t *testing.T) {
	for _, x := range []struct {
		mode   string
		secure bool
	}{{"continuous", false}, {"compare", true}} {
		t.Run(fmt.Sprintf("%s, TLS %v", x.mode, x.secure), func(t *testing.T) {
			if testing.Short() {
				t.Skip("takes some seconds")
			}
			var out strings.Builder
			if err := play(t.Context(), &out, x.secure, x.mode); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			t.Log(out.String())
			wants := []string{
				`host a is killed: host b goes on after`,
				`host b is stopped: host a goes on after .*; when it is continued 0 lines leave it`,
				`host a hands the guest over to host b`,
				`[1-9]\d\d lines: \d+ said twice in the same words, 0 lost, 0 contradicted, 0 wrong|\d{4,} lines: \d+ said twice in the same words, 0 lost, 0 contradicted, 0 wrong`,
			}
			if x.mode == "compare" {
				wants = append(wants, `[1-9]\d* lines left when both guests had said them, [1-9]\d* with a checkpoint`)
			}
			for _, want := range wants {
				if !regexp.MustCompile(want).MatchString(out.String()) {
					t.Errorf("%q is not in:\n%s", want, out.String())
				}
			}
		})
	}
}

// What the client cannot fail to notice, it does notice.
func TestClientCountsWhatIsWrong(t *testing.T) {
	var r [5]round
	for i := range r[1:] {
		r[i+1] = r[i].next(uint64(i))
	}
	c := &client{first: map[string]time.Time{}}
	for _, s := range []string{
		r[1].String(), r[1].String(), // again
		round{1, 7, 7}.String(), // contradicted
		r[3].String(),           // 2 is lost
		round{2, 7, 7}.String(), // wrong
		"what", "0 0 0",         // wrong
	} {
		c.line("a", s)
	}
	if c.again != 1 || c.contradicted != 1 || c.lost != 1 || c.wrong != 3 {
		t.Errorf("%+v", c)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"-host", "a", "-listen", ":0", "-dial", ":1"},
		{"-host", "", "-insecure", "-listen", ":0", "-dial", ":1"},
		{"-host", "a", "-cert", "/nowhere"},
		{"-host", "a", "-insecure", "-listen", ":0", "-dial", ":1", "-mode", "what"},
		{"-what"},
	} {
		if err := host(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

// A script must see that a demonstration was not finished; a host that was asked to end has
// done so.
func TestOnlyADemonstrationFailsWhenItIsEnded(t *testing.T) {
	ended := fmt.Errorf("nothing came: %w", context.Canceled)
	for _, x := range []struct {
		err     error
		service bool
		want    int
	}{{nil, false, 0}, {nil, true, 0}, {ended, false, 1}, {ended, true, 0}, {cli.ErrWrong, true, 2}, {os.ErrNotExist, true, 1}} {
		if got := statusOf(x.err, x.service); got != x.want {
			t.Errorf("%v, a service: %v: status %d, want %d", x.err, x.service, got, x.want)
		}
	}
}

func TestAHostNeedsItsAddressesAndCertificates(t *testing.T) {
	for args, want := range map[string]string{
		"-host a -peer a -listen :0 -dial :0 -insecure": `-host and -peer are both "a"`,
		"-host a": "-listen is missing", "-host a -listen :0": "-dial is missing", "-listen :0 -dial :0": "-host is missing",
		"-host a -listen :0 -dial :0 -insecure -ca a": "-ca and -insecure contradict each other",
		"-host a -listen :0 -dial :0":                 "-cert is missing", "-host a -listen :0 -dial :0 -cert c -key k -ca a": "-peer is missing",
		"-host a -listen :0 -dial there -insecure": "-dial there: want [HOST]:PORT", "-host a -listen 7001 -dial :0 -insecure": "-listen 7001: want [HOST]:PORT",
		"-host a -listen :0 -dial :0 -insecure -http-control": "-http-control is for the page of -http",
		"-host a -tls -listen :0 -dial :0":                    "one host has -cert, -key, -ca and -peer",
	} {
		err := host(t.Context(), strings.Fields(args), io.Discard, io.Discard)
		if !errors.Is(err, cli.ErrWrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
