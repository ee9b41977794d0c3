// Lockstep-etcd keeps an arbiter's record in etcd, for a host that does not link etcd's
// client. The host starts it; see package failover/program of lockstep.
//
//	lockstep-etcd -endpoints a:2379,b:2379,c:2379 -key /lockstep/db1
//
// It answers requests on standard input until that ends.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/failover/etcd"
	"github.com/gocolo/lockstep/failover/program"
	"github.com/gocolo/lockstep/internal/cli"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func main() {
	// It serves its host to the end, also where both of them are told to end: by Ctrl-C, or
	// by a service manager. What the host says last is that it gives the guest up.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	os.Exit(statusOf(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// statusOf runs the program, says on stderr what went wrong, and returns the exit status.
func statusOf(args []string, in io.Reader, stdout, stderr io.Writer) int {
	out := cli.NewOutput(stdout)
	err := run(context.Background(), args, in, out)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return out.Status(0, "lockstep-etcd", stderr)
	case errors.Is(err, cli.ErrWrong):
		return cli.Tell(stderr, "lockstep-etcd", err)
	}
	fmt.Fprintln(stderr, "lockstep-etcd:", err)
	return 1
}

const about = `Lockstep-etcd keeps an arbiter's record in etcd, for a host that does not link etcd's
client. The host starts it, and asks it on its standard input; it ends when that does.

  lockstep-etcd -endpoints a:2379,b:2379,c:2379 -key /lockstep/db1

Exit status: 0, 1 if something failed, 2 for a bad command line.

`

// passwordVariable has the password of -user: arguments can be read by everybody.
const passwordVariable = "LOCKSTEP_ETCD_PASSWORD"

// run is the program.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("lockstep-etcd", flag.ContinueOnError)
	endpoints := f.String("endpoints", "", "`HOST:PORT,...` of the cluster's members, with https:// in front for TLS")
	key := f.String("key", "", "the `KEY` that has the record, of one guest alone")
	timeout := f.Duration("timeout", etcd.DefaultTimeout, "`time` for one request to one member; less than the term")
	user := f.String("user", "", "`NAME` by which etcd knows this host; $"+passwordVariable+" is its password")
	ca := f.String("cacert", "", "certificates of the authorities that sign the members', a PEM `file`; default the system's")
	cert := f.String("cert", "", "this host's certificate, a PEM `file`")
	certKey := f.String("cert-key", "", "its key, a PEM `file`")
	if err := cli.Parse(f, about, args, out); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return cli.Wrong("unexpected argument %q", f.Arg(0))
	case *endpoints == "":
		return cli.Wrong("-endpoints is needed")
	case *key == "":
		return cli.Wrong("-key is needed: it is another one for each guest")
	case *timeout < 10*time.Millisecond:
		return cli.Wrong("-timeout %v: want at least 10ms", *timeout)
	case (*cert == "") != (*certKey == ""):
		return cli.Wrong("-cert and -cert-key belong together")
	}
	members := strings.Split(*endpoints, ",")
	secure := strings.HasPrefix(members[0], "https://")
	for _, m := range members {
		if err := cli.CheckEndpoint(m); err != nil {
			return cli.Wrong("-endpoints: %w", err)
		}
		if strings.HasPrefix(m, "https://") != secure {
			return cli.Wrong("-endpoints: all of them have https:// in front, or none: to one without, the password and the record may go in clear")
		}
	}
	if !secure && (*ca != "" || *cert != "") {
		return cli.Wrong("-cacert and -cert are for members that have https:// in front")
	}
	var security *tls.Config
	if secure {
		var err error
		if security, err = (transport.TLSInfo{TrustedCAFile: *ca, CertFile: *cert, KeyFile: *certKey}).ClientConfig(); err != nil {
			return err
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: members, TLS: security, Username: *user, Password: os.Getenv(passwordVariable),
		DialTimeout: *timeout, DialKeepAliveTime: time.Second, DialKeepAliveTimeout: *timeout, Logger: zap.NewNop(), Context: ctx,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	return program.Serve(ctx, in, out, etcd.Open(client, *key, etcd.Config{Timeout: *timeout}))
}
