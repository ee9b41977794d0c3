package standby_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// protectedQEMU starts a guest under a QEMU, protected by a standby of this package. The
// standby's side of the arbiter answers with an error, if there is one.
func protectedQEMU(t *testing.T, answer error) (*qemutest.VM, *session, <-chan colo.Claim) {
	t.Helper()
	var l net.Listener
	l, v := primary(t, "microvm", 4, 1, 20*time.Millisecond)
	claims := make(chan colo.Claim, 100)
	var o options
	o.cfg.Arbiter = colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
		claims <- c
		return answer
	})
	x := accept(t, l, o)
	x.await(3)
	return v, x, claims
}

// count checks that the guest of a QEMU prints further numbers.
func count(t *testing.T, v *qemutest.VM) {
	t.Helper()
	v.AwaitRunState("running")
	qemutest.AwaitSerial(t, v.Dir, len(qemutest.Serial(v.Dir))+5)
}

// A QEMU primary is told to end the protection by an order of its own. The
// standby's session ends with it, and what the arbiter says then decides.
func TestAQEMUThatIsToldToEndTheProtectionRunsOn(t *testing.T) {
	qemutest.KVM(t)
	v, x, claims := protectedQEMU(t, fmt.Errorf("%w: the primary runs on", colo.ErrRefused))
	v.Must("x-colo-lost-heartbeat", nil)
	if err := x.wait(); !errors.Is(err, colo.ErrRefused) || errors.Is(err, colo.ErrGoodbye) {
		t.Errorf("the session ended with %v", err)
	}
	if c := <-claims; c.Ordered {
		t.Errorf("the arbiter was asked %+v, and nobody gave an order here", c)
	}
	count(t, v)
}

// End cannot tell a QEMU anything. The standby does not go on and asks nobody, and
// the QEMU's guest stands until it is told.
func TestTheEndOfAStandbyLeavesItsQEMUToTheOperator(t *testing.T) {
	qemutest.KVM(t)
	v, x, claims := protectedQEMU(t, nil)
	if err := x.s.End(); err != nil {
		t.Fatal(err)
	}
	if err := x.wait(); !errors.Is(err, colo.ErrGoodbye) {
		t.Errorf("the session ended with %v", err)
	}
	select {
	case c := <-claims:
		t.Errorf("the arbiter was asked %+v", c)
	default:
	}
	v.Must("x-colo-lost-heartbeat", nil)
	count(t, v)
}

// Towards a QEMU secondary End is a claim. That secondary is not told: it finds its
// connection closed, and its guest runs on as it did beside the primary's, so its
// process is to be quit.
func TestTheEndOfAPrimaryIsAClaimTowardsAQEMU(t *testing.T) {
	qemutest.KVM(t)
	v, x, _ := protectedQEMU(t, nil)
	v.Kill()
	if err := x.wait(); err != nil {
		t.Fatal(err)
	}
	s, uri := secondary(t, "microvm", 4)
	d := protect(t, x.guest, uri, ram.SaverConfig{}, colo.PrimaryConfig{CheckpointDelay: 20 * time.Millisecond})
	d.await(t, 3)
	if err := d.End(); err != nil {
		t.Fatal(err)
	}
	if err := <-d.done; !errors.Is(err, colo.ErrRefused) { // what a replica's arbiter says
		t.Errorf("the session ended with %v", err)
	}
	s.Await("COLO_EXIT")
	if state := s.RunState(); state != "running" {
		t.Errorf("the QEMU secondary is %s, as if it had been told", state)
	}
	s.Must("quit", nil)
	s.AwaitEnd()
}
