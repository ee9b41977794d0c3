package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

// Somebody may say reconnect of a secondary that is there, at a moment when no other connection to it can be made.
func TestASecondaryStaysAttachedUntilItIsReachedAnew(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "4M", "-listen", b)
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect("replication runs, epoch 0")
	pg, sg := guest(t, a, "disk"), guest(t, b, "guest")
	for i, at := range []string{b + ".control", b} { // where it cannot be reached: for checkpoints, and for its exports
		if err := os.Rename(at, b+".away"); err != nil {
			t.Fatal(err)
		}
		p.say("reconnect")
		p.expect("the secondary that is attached stays\n")
		fill := byte(0x22 + i)
		write(t, pg, fill, 0)
		if err := pg.Sync(); err != nil {
			t.Fatal(err)
		}
		p.say("checkpoint")
		p.expect("checkpoint " + string(rune('1'+i)) + "\n")
		want(t, "the checkpoint", sg, fill, 0)
		if err := os.Rename(b+".away", at); err != nil {
			t.Fatal(err)
		}
	}
	p.say("reconnect")
	p.expect("replication runs, epoch 3")
	write(t, pg, 0x44, 0)
	p.say("checkpoint")
	p.expect("checkpoint 4\n")
	want(t, "the checkpoint", sg, 0x44, 0)
	p.quit()
	s.quit()
}
