package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// heldOutput returns a network whose output can be held, as the README has it.
func heldOutput(dir string) []string {
	at := func(name string) string { return filepath.Join(dir, name) }
	return []string{
		"-netdev", "hubport,id=n0,hubid=0", "-object", "iothread,id=hold",
		"-chardev", "socket,id=none,server=on,wait=off,path=" + at("none"),
		"-chardev", "socket,id=held,server=on,wait=off,path=" + at("held"), "-chardev", "socket,id=held-in,path=" + at("held"),
		"-chardev", "socket,id=freed,server=on,wait=off,path=" + at("freed"), "-chardev", "socket,id=freed-out,path=" + at("freed"),
		"-object", "filter-redirector,id=free,netdev=n0,queue=rx,indev=freed",
		"-object", "filter-redirector,id=take,netdev=n0,queue=rx,outdev=held,status=off",
		"-object", "colo-compare,id=compare,primary_in=held-in,secondary_in=none,outdev=freed-out,iothread=hold",
	}
}

// becomesHeld waits until a redirector of the QEMU is on, or off.
func becomesHeld(t *testing.T, v *qemutest.VM, id, want string) {
	t.Helper()
	var is string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := v.Client.Do(t.Context(), "qom-get", qemutest.Args{"path": "/objects/" + id, "property": "status"}, &is); err != nil {
			t.Fatal(err)
		}
		if is == want {
			return
		}
	}
	t.Fatalf("filter %s is %s, not %s", id, is, want)
}

func TestOutputIsHeldWhileTheGuestIsProtectedAndNoLonger(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, nil, heldOutput(qemutest.Dir(t))...)
	becomesHeld(t, g.vm, "take", "on")
	g.standby.cancel()
	becomesHeld(t, g.vm, "take", "off")
	becomesHeld(t, g.vm, "free", "on") // what has been taken can leave
	g.runsHere()
}

func TestOutputIsNotHeldWithoutAColoCompare(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, "-M", "none", "-nodefaults", "-display", "none", "-netdev", "hubport,id=n0,hubid=0",
		"-chardev", "socket,id=held,server=on,wait=off,path="+filepath.Join(dir, "held"),
		"-object", "filter-redirector,id=take,netdev=n0,queue=rx,outdev=held,status=off")
	if list, err := holdOutput(t.Context(), v.Client, true); err != nil || len(list) > 0 {
		t.Errorf("%q, %v", list, err)
	}
	becomesHeld(t, v, "take", "off")
}
