package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/gocolo/lockstep/replication"
)

const aboutRelay = `usage: lockstep-qemu relay -listen ADDR -state DIR -to ADDR[,ADDR...] [flags] [-- qemu-system-x86_64 ...]

Relay is a standby that passes each checkpoint on to QEMU secondaries, each of
them started with -incoming ADDR. It answers the primary as soon as it has a
checkpoint itself, so a slow secondary does not hold the primary up: it gets the
newest checkpoint when it is ready for one. A secondary that dies is tried again,
once a second, and begins anew.

So a secondary may be a checkpoint behind. That loses nothing when the primary
dies, nor when a secondary does; but if the primary and the relay die together, a
secondary may lack what the primary's guest has already told the world. With -sync N
the primary is answered only when N secondaries have the checkpoint too: its
guest stands still for their time as well, and any one failure more is survived.
The primary is not kept waiting for secondaries that are not there: while fewer
than N follow, -sync asks for those only, and says so. One that stops answering
holds the primary up for -peer-timeout, once.

When the primary is lost, the secondaries first get the last whole checkpoint.
With -qmp, the first that has it is told to go on (x-colo-lost-heartbeat).
Without, that is the operator's to do, with one of them. Where none is left, the
relay does what a standby does: see lockstep-qemu standby -h, also for what a lost primary
is, and for the exit statuses.

One guest must run and never two. A QEMU secondary runs its copy of the guest, and
does not stop it when it loses its peer; so when the relay ends, for whatever
reason, it stops (QMP stop) all secondaries with a monitor but the one that goes
on. One that was stopped can still be promoted by x-colo-lost-heartbeat. Those
without a monitor, or that do not answer, are named: end them.
`

func relayCommand(ctx context.Context, args []string, t terminal) int {
	var o standbyOptions
	f := flag.NewFlagSet("relay", flag.ContinueOnError)
	o.flags(f)
	to := f.String("to", "", "pass checkpoints on to the secondaries at `ADDR[,ADDR...]`")
	monitors := f.String("qmp", "", "order these secondaries over their monitors, in the same order, at `ADDR[,ADDR...]`")
	creds := f.String("to-tls", "", "encrypt what goes to the secondaries with the certificates in `DIR`, named as for QEMU's tls-creds-x509: ca-cert.pem, client-cert.pem, client-key.pem")
	required := f.Int("sync", 0, "answer the primary only when `N` secondaries have a checkpoint, too")
	delta := f.Uint64("xbzrle", 0, "keep so many `MB` of pages per secondary to send differences only; for slow links")
	if status, done := parse(f, aboutRelay, args, t, true); done {
		return status
	}
	if o.qemu = f.Args(); len(o.qemu) > 0 && !slices.Contains(args, "--") {
		return t.wrong("relay", fmt.Errorf("unexpected argument %q (the QEMU comes after --)", o.qemu[0]))
	}
	if err := o.check(); err != nil {
		return t.wrong("relay", err)
	}
	switch {
	case *to == "":
		return t.wrong("relay", errors.New("-to is missing"))
	case len(o.images) > 0:
		return t.wrong("relay", errors.New("-disk is a standby's: a relay's secondaries would not have it"))
	}
	r := &relayRun{}
	for _, addr := range strings.Split(*to, ",") {
		s := &follower{r: r, addr: addr, xbzrle: *delta << 20}
		if *creds != "" {
			var err error
			if s.creds, err = newCertificates("-to-tls", *creds, clientCreds(hostOf(addr)), &printer{terminal: t}); err != nil {
				return t.wrong("relay", err)
			}
		}
		r.secondaries = append(r.secondaries, s)
	}
	if *monitors != "" {
		list := strings.Split(*monitors, ",")
		if len(list) != len(r.secondaries) {
			return t.wrong("relay", fmt.Errorf("-qmp names %d monitors of %d secondaries", len(list), len(r.secondaries)))
		}
		for i, m := range list {
			r.secondaries[i].monitor = m
		}
	}
	if *required < 0 || *required > len(r.secondaries) {
		return t.wrong("relay", fmt.Errorf("-sync %d of %d secondaries", *required, len(r.secondaries)))
	}
	r.standbyRun = newStandby(o, t)
	r.committed, r.handOver, r.secondariesOf = r.passOn, r.promote, r.secondaryStatuses
	if *required > 0 {
		g := &together{keeper: r.keeper, r: r, want: *required, few: -1}
		r.loader, r.others = g, replication.Group{g}
	}
	return r.main(ctx)
}

// relayRun is a standby with secondaries of its own.
type relayRun struct {
	*standbyRun
	secondaries []*follower

	ctx context.Context

	promoted *follower // the secondary that was told to go on; nil: none
	quieted  sync.Once
	quieting sync.WaitGroup
}

func (r *relayRun) main(ctx context.Context) int {
	r.ctx = context.WithoutCancel(ctx)
	r.cleanup = r.end
	return r.standbyRun.main(ctx)
}

// end ends the sessions with the secondaries, and the guests of those that are
// not to go on.
func (r *relayRun) end() {
	r.quiet()
	r.quieting.Wait()
}

// passOn is called after each checkpoint, the initial one first.
func (r *relayRun) passOn(epoch uint64) {
	for _, s := range r.secondaries {
		if epoch == 0 {
			s.begin(r.ctx)
		}
		if !s.has(epoch) {
			s.request()
		}
	}
}
