package standby_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A QEMU primary that is killed at any step of a checkpoint leaves a guest that
// can be brought back. (A QEMU secondary in its place would emit COLO_EXIT, and
// from vmstate-send on leave its guest standing until x-colo-lost-heartbeat.)
func TestAPrimaryThatIsKilledAtAnyStepIsBroughtBack(t *testing.T) {
	qemutest.KVM(t)
	for i, when := range []string{
		"wait", "pause", "send checkpoint-reply", "expect vmstate-send", "stage ram", "stage device state",
		"commit", "resume", "send vmstate-loaded",
	} {
		t.Run(when, func(t *testing.T) {
			require.Sample(t, i, 4)
			l, p := primary(t, "microvm", 4, 1, 10*time.Millisecond)
			var o options
			o.cfg.Step = func(op string, epoch uint64) {
				if op == when && epoch == 3 {
					p.Kill()
				}
			}
			x := accept(t, l, o)
			if err := x.wait(); err != nil {
				t.Fatal(err)
			}
			in, err := x.guest.Info()
			if err != nil || in.Epoch < 2 || in.Epoch > 3 {
				t.Fatalf("%+v, %v", in, err)
			}
			at := x.lastCount()
			back := qemutest.Dir(t)
			qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "microvm", 4), "-incoming", "exec:cat "+x.stream())...)
			goesOn(t, back, at)
		})
	}
}

// A QEMU secondary that dies or stands still at any step ends its session and
// nothing else. (A QEMU in the place of this primary would wait for ever
// for one that stands still, its guest stopped.)
func TestASecondaryThatIsLostAtAnyStepDoesNotMatterToTheGuest(t *testing.T) {
	t.Parallel()
	qemutest.KVM(t)
	l, v := primary(t, "microvm", 4, 2, 10*time.Millisecond)
	x := accept(t, l, options{})
	x.await(2)
	v.Kill()
	x.wait()
	before := put(t, x.guest)

	for i, c := range []struct {
		op    string
		epoch uint64
	}{
		{"send ram while running", 0}, {"expect checkpoint-ready", 0},
		{"expect checkpoint-reply", 3}, {"send device state", 3}, {"expect vmstate-received", 3}, {"expect vmstate-loaded", 3},
	} {
		for _, lost := range []string{"killed", "frozen"} {
			t.Run(c.op+" "+lost, func(t *testing.T) {
				require.Sample(t, i, 5)
				t.Parallel()
				s, uri := secondary(t, "microvm", 4)
				hit := false
				d := protect(t, x.guest, uri, ram.SaverConfig{}, colo.PrimaryConfig{CheckpointDelay: -1, PeerTimeout: 10 * time.Second, Step: func(op string, epoch uint64) {
					if op == c.op && epoch == c.epoch {
						hit = true
						if lost == "killed" {
							s.Kill()
						} else {
							s.Freeze()
						}
					}
				}})
				err := <-d.done
				if !hit || err == nil || lost == "frozen" && !errors.Is(err, colo.ErrTimeout) && !gotThrough(c.op) {
					t.Errorf("reached: %t; the session ended with %v", hit, err)
				}
				if !bytes.Equal(put(t, x.guest), before) {
					t.Error("the guest has changed")
				}
			})
		}
	}
}

// gotThrough names the steps at which a stopped QEMU may have answered already.
func gotThrough(op string) bool { return op == "expect vmstate-loaded" }

func TestAGuestThatIsUsedIsNotFreed(t *testing.T) {
	x := replay(t, noneGuest(t), standby.Config{}, nil)
	p, _, err := x.NewReplica(new(vmstate.Registry), ram.SaverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Copy.Close(); err == nil {
		t.Fatal("it was")
	}
	put(t, x.Copy)
	if err := errors.Join(p.Close(), x.Copy.Close()); err != nil {
		t.Error(err)
	}
}
