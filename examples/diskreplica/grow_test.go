package main

import (
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

func TestADiskGrowsBelowAGuestThatGoesOn(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "1M", "-journal", b, "-listen", b)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-image", a+".img", "-size", "1M", "-secondary", b, "-listen", a)
	p.expect("replication runs")
	before := guest(t, a, "disk")
	write(t, before, 0x22, 0)
	p.say("grow 2M")
	p.expect("the secondary has 1048576 bytes")
	for _, side := range []*process{s, p} {
		side.say("grow lots")
		side.expect(`"lots" is no size`)
		side.say("grow 2M")
		side.expect("grown: the disk has 2097152 bytes")
	}
	write(t, before, 0x33, 4096) // by the connection of before
	write(t, guest(t, a, "disk"), 0x44, 2<<20-4096)
	p.say("checkpoint")
	p.expect("checkpoint 1")
	p.say("verify")
	p.expect("2048 KiB compared, 0 KiB differed")
	p.kill()
	s.say("failover")
	s.expect("failover: the disk")
	on := guest(t, b, "guest")
	want(t, "from before the growth", on, 0x22, 0)
	want(t, "by the connection of before", on, 0x33, 4096)
	want(t, "what has grown", on, 0x44, 2<<20-4096)
	s.say("grow 3M")
	s.expect("grown: the disk has 3145728 bytes")
	write(t, guest(t, b, "guest"), 0x55, 3<<20-4096)
	s.quit()
}

// Without a secondary an image grows alone, and is a copy again when the other one has grown too.
func TestADiskThatHasGrownAloneIsACopyAgainOnceTheOtherHasGrown(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "1M", "-listen", b)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-image", a+".img", "-size", "1M", "-secondary", b, "-listen", a)
	p.expect("replication runs")
	p.say("failover")
	p.expect("failover")
	p.say("grow 2M")
	p.expect("grown: the disk has 2097152 bytes")
	write(t, guest(t, a, "disk"), 0x44, 2<<20-4096)
	p.say("reconnect")
	p.expect("the local disk has 2097152 bytes, the secondary's 1048576")
	s.say("grow 2M")
	s.expect("grown")
	p.say("reconnect")
	p.expect("replication runs")
	p.say("verify")
	p.expect("2048 KiB compared, 0 KiB differed")
	p.quit()
	s.quit()
}
