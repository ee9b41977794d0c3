package linuxguest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/event"
)

// How long anything may take at all. Emulated machines on a busy host stand
// still for seconds; nothing is judged by its speed.
const (
	bootTime = 6 * time.Minute
	stepTime = 4 * time.Minute
)

// What the guest must have done before a machine dies, and again afterwards.
const (
	recordsEach = 25
	syncedEach  = 15
	chunksEach  = 20
)

// guestArgs is the command line of the kernel of a guest.
const guestArgs = "console=ttyS0 quiet panic=-1 nokaslr cryptomgr.notests ipv6.disable=1 rdinit=/init"

// network returns the part of a role that connects the guest's TAP interface, by a
// bridge, and the machine itself.
func network(number int) string {
	return fmt.Sprintf(`
ip addr add 10.66.0.%d/24 dev $cluster
ip link set $cluster up
tunctl -t tap0 >/dev/null
brctl addbr br0
echo 0 >/sys/class/net/br0/bridge/forward_delay
for i in $guest tap0; do brctl addif br0 $i; ip link set $i up; done
ip link set br0 up
`, number)
}

// program returns the part of a role that runs gokvm: what it reports goes to the
// machine's second serial line, the guest's console to the first. What the machine's
// kernel knows of a triple fault of the guest follows.
func program(t *testing.T, k *Kit, args string, vcpus int) string {
	t.Helper()
	return tellShutdowns(t, k) + fmt.Sprintf("/gokvm %s -json -mem 128M -vcpus %d -disk /dev/vda -tap tap0 -mac %s -beat 500ms -lost-after 8s -insecure </dev/null >/dev/ttyS1\n",
		args, vcpus, GuestMAC) + "code=$?\n" + toldShutdowns + `echo "machine: gokvm ended with $code"` + "\n"
}

func TestAProtectedGuestOutlivesItsHost(t *testing.T) {
	k := needKit(t, "qemu-system-x86_64", "mke2fs", "e2fsck", "debugfs")
	guest := filepath.Join(t.TempDir(), "guest.cpio")
	host := filepath.Join(t.TempDir(), "host.cpio")
	if err := errors.Join(k.GuestArchive(guest), k.HostArchive(host, guest)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		victim string
		vcpus  int
	}{
		{"primary", 1}, {"secondary", 2}, {"primary", 2}, {"secondary", 1},
		{"nobody", 1},
	} {
		t.Run(fmt.Sprintf("%s killed with %d vCPU", c.victim, c.vcpus), func(t *testing.T) {
			outlives(t, k, host, c.victim, c.vcpus)
		})
	}
}

// outlives is one run.
func outlives(t *testing.T, k *Kit, host, victim string, vcpus int) {
	t.Helper()
	w := newWorld(t, k)
	w.client()
	p := &pair{
		world:  w,
		images: map[string]string{"primary": w.image("primary.img", true), "secondary": w.image("secondary.img", false)},
	}
	p.machine(2, "secondary", network(2)+program(t, k, "secondary -listen 10.66.0.2:7654", vcpus), p.images["secondary"], []string{host}, nil)
	p.machine(1, "primary", network(1)+program(t, k,
		"primary -peer 10.66.0.2:7654 -interval 1s -min-interval 150ms -checkpoint-timeout 30s -kernel /guest/kernel -initrd /guest/initrd -append '"+guestArgs+"'",
		vcpus), p.images["primary"], []string{host}, nil)
	p.protect()
	if victim == "nobody" {
		p.end("primary", "secondary")
		return
	}
	p.kill(victim)
	p.end(p.survivor)
}

// A pair is a world with a protected guest in it.
type pair struct {
	*world
	images   map[string]string
	client   *Client
	done     chan error // the client's Run
	survivor string
	begun    time.Time

	failover, silence time.Duration // at the client, after the kill
}

// protect waits until the guest is protected and has worked for a while.
func (p *pair) protect() {
	p.t.Helper()
	p.begun = time.Now()
	ctx, cancel := p.unlessEnded(p.ctx, bootTime, p.machines["primary"], p.machines["secondary"])
	defer cancel()
	p.said(ctx, "primary", `"name":"protected"`)
	protected := time.Since(p.begun)
	p.said(ctx, "primary", "guest: jobs run")
	p.t.Logf("protected %v after the machines were switched on, the guest at work after %v", round(protected), round(time.Since(p.begun)))
	p.client = NewClient(p.dial(ctx, GuestIP, ReportPort), p.dial(ctx, GuestIP, ChunkPort))
	p.done = make(chan error, 1)
	p.group.Go(func() { p.done <- p.client.Run(p.ctx) })
	p.work(Progress{}, p.machines["primary"], p.machines["secondary"])
}

// said waits until a machine has said something.
func (p *pair) said(ctx context.Context, machine, what string) {
	p.t.Helper()
	if err := p.machines[machine].Said(ctx, what); err != nil {
		p.stands("machine %s does not say %s: %v", machine, what, err)
	}
}

// work waits until the guest has done its share since then, for which the
// machines must live.
func (p *pair) work(since Progress, machines ...*Machine) {
	p.t.Helper()
	ctx, cancel := p.unlessEnded(p.ctx, stepTime, machines...)
	defer cancel()
	for {
		now, err := p.client.Progress()
		switch {
		case err != nil:
			p.t.Fatal(err)
		case now.Record.Seq >= since.Record.Seq+recordsEach && now.Record.Synced >= since.Record.Synced+syncedEach &&
			now.Record.Pass > since.Record.Pass && now.Record.Counter > since.Record.Counter && now.Chunks >= since.Chunks+chunksEach:
			return
		}
		select {
		case err := <-p.done:
			p.t.Fatalf("the client's connections ended: %v", err)
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			p.stands("the guest does not get on (%s): %v: %+v, and was at %+v", p.answers(), context.Cause(ctx), now, since)
		}
	}
}

// answers says whether the guest's kernel answers though its connections stand: then its
// CPUs run, and what stands is its work, its disk or those connections.
func (p *pair) answers() string {
	dialer := net.Dialer{Timeout: 20 * time.Second}
	var err error
	p.in(func() error {
		var conn net.Conn
		if conn, err = dialer.DialContext(p.ctx, "tcp4", GuestIP+":"+ChunkPort); err == nil {
			conn.Close()
		}
		return nil
	})
	if err == nil || errors.Is(err, unix.ECONNREFUSED) {
		return "a new connection is answered"
	}
	return fmt.Sprintf("a new connection is not answered: %v", err)
}

// kill is the power failure of one machine, which the other must survive.
func (p *pair) kill(victim string) {
	p.t.Helper()
	p.survivor = map[string]string{"primary": "secondary", "secondary": "primary"}[victim]
	before, err := p.client.Progress()
	p.must(err)
	if at := p.guests.Behind(mac(GuestMAC)); at != "primary-guests" {
		p.t.Errorf("before the kill the switch has the guest at %q", at)
	}
	p.client.Watch()
	p.must(p.machines[victim].Kill())
	ctx, cancel := context.WithTimeout(p.ctx, stepTime)
	defer cancel()
	p.said(ctx, p.survivor, `"name":"alone"`)
	alone, err := p.client.Progress()
	p.must(err)
	p.work(Progress{Record: alone.Record, Chunks: alone.Chunks}, p.machines[p.survivor])
	p.failover, p.silence = p.client.Silence()
	if at := p.guests.Behind(mac(GuestMAC)); at != p.survivor+"-guests" {
		p.t.Errorf("after the kill the switch has the guest at %q", at)
	}
	p.t.Logf("killed the %s at record %d; from SIGKILL to the survivor's first byte at the client %v, longest silence there %v",
		victim, before.Record.Seq, round(p.failover), round(p.silence))
}

// endWork lets the guest end its work, and returns how far it has come.
func (p *pair) endWork(ctx context.Context) (last Progress) {
	p.t.Helper()
	p.must(p.client.Stop())
	select {
	case err := <-p.done:
		p.must(err)
	case <-ctx.Done():
		p.stands("the guest does not end its work (%s)", p.answers())
	}
	last, _ = p.client.Progress()
	if !last.Record.Last {
		p.t.Error("the guest has not said which record is the last")
	}
	return last
}

// end lets the guest end its work, and looks at what is left on the hosts that
// live.
func (p *pair) end(hosts ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, stepTime)
	defer cancel()
	last := p.endWork(ctx)
	for _, host := range hosts {
		m := p.machines[host]
		select {
		case <-m.Ended():
		case <-ctx.Done():
			p.stands("machine %s does not end", host)
		}
		if !strings.Contains(m.Console(), "machine: gokvm ended with 0") {
			p.t.Errorf("gokvm on machine %s has failed", host)
		}
	}
	ran := hosts[0] // where the guest ended
	for _, said := range []string{"guest: jobs ended with 0", "guest: unmounted"} {
		if !strings.Contains(p.machines[ran].Console(), said) {
			p.t.Errorf("the guest has not said %q on machine %s", said, ran)
		}
	}
	if len(hosts) > 1 && strings.Contains(p.machines[hosts[1]].Events(), `"name":"alone"`) {
		p.t.Error("the secondary took over a guest that had switched itself off")
	}
	entries, err := CheckLog(p.log(p.images[ran]), last.Record.Synced)
	if err != nil {
		p.t.Error(err)
	}
	p.report(last, entries)
}

func mac(s string) [6]byte {
	hw, err := net.ParseMAC(s)
	if err != nil {
		panic(err) // a constant of this package
	}
	return [6]byte(hw)
}

// report says what the run was like. All of it is nested emulation.
func (p *pair) report(last Progress, entries uint64) {
	var pages, pauses []uint64
	causes := make(map[event.Cause]int)
	for line := range strings.Lines(p.machines["primary"].Events()) {
		var r struct {
			Event string                 `json:"event"`
			Data  event.CheckpointCommit `json:"data"`
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Event == "CHECKPOINT_COMMIT" && r.Data.Epoch > 0 {
			pages = append(pages, r.Data.Pages)
			pauses = append(pauses, uint64(r.Data.PauseNS))
			causes[r.Data.Cause]++
		}
	}
	delays := p.client.Delays()
	ms := func(ns uint64) string { return fmt.Sprintf("%.1f ms", float64(ns)/1e6) }
	p.t.Logf("RUN %s (nested emulation): %d checkpoints %v, dirty pages p50 %d, pause p50 %s p99 %s; chunk answered after p50 %v p99 %v; %d records, %d chunks, %d passes, %d of %d entries were known to be stable; failover %v; %v in all",
		p.t.Name(), len(pauses), causes, quantile(pages, 0.5), ms(quantile(pauses, 0.5)), ms(quantile(pauses, 0.99)),
		round(quantile(delays, 0.5)), round(quantile(delays, 0.99)),
		last.Record.Seq+1, last.Chunks, last.Record.Pass, last.Record.Synced, entries, round(p.failover), round(time.Since(p.begun)))
	if len(pauses) == 0 {
		p.t.Error("there was no checkpoint")
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func quantile[T uint64 | time.Duration](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
