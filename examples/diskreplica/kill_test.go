package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

var (
	killCount = flag.Int("kills", 100, "how often a process is killed")
	killSeed  = flag.Uint64("kills.seed", 0, "the seed of the kills; 0: another each time")
)

const (
	trialBlock  = 4096
	trialBlocks = 256
	trialGrowth = 5 * trialBlocks // how much longer the disk becomes at most
)

// contents is what a disk has: which write of the trial was the last of each block. It has not grown to the last ones.
type contents [trialBlocks + trialGrowth]uint64

// trialHost is a host: an image, a journal, and the process that uses them, if one does.
type trialHost struct {
	image, journal, addr string
	of                   *victim
	stands               *point // a secondary's last checkpoint
	next                 *point // one that it may have made instead
}

// point is a disk at a checkpoint.
type point struct {
	epoch uint64
	has   contents
	any   bool // the epoch is not known
}

func (h *trialHost) dead() bool { return h.of == nil || h.of.shot.Load() }

// saysWhetherUsed reports whether what is said of the image, of a host that was alive or buried before, is
// right about that. One that was killed meanwhile may have used it.
func (h *trialHost) saysWhetherUsed(said string) bool {
	return h.of != nil && h.dead() || strings.Contains(said, "in use") == (h.of != nil)
}

// bury waits until the process is over.
func (h *trialHost) bury() {
	if h.of != nil {
		h.of.kill()
		h.of.rest()
		h.of = nil
	}
}

// killTrial is a pair of diskreplicas with a guest on the primary, whose writes are known.
type killTrial struct {
	t            *testing.T
	rng          *rand.Rand
	lead, follow *trialHost
	written      uint64
	has          contents         // what the guest was told is written
	maybe        map[int64]uint64 // a write that was not answered
	kills        int
	checkpoints  int
	failovers    int
	blocks       int64 // how long the guest's disk is
	growing      bool  // it grows now and then
	growths      int
}

// A primary, a secondary or both are killed with SIGKILL at any moment: while they synchronise, write, make a checkpoint or go
// on alone. What the guest was told is written is on the primary's image afterwards; the secondary's
// comes back as that of a checkpoint that was made, or was being made; "verify" finds no difference; and the
// command "status" says of each image what it is.
func TestDiskreplicasThatAreKilledLoseNothingAndSayTheTruth(t *testing.T) { trialOfKills(t, false) }

// The same while the disk grows, first on the secondary and then on the primary.
func TestDiskreplicasThatAreKilledWhileTheirDiskGrowsLoseNothing(t *testing.T) { trialOfKills(t, true) }

func trialOfKills(t *testing.T, growing bool) {
	require.Outside(t, require.Processes)
	seed := cmp.Or(*killSeed, uint64(time.Now().UnixNano()))
	kills := *killCount
	if growing {
		kills = kills * 3 / 5
	}
	if testing.Short() {
		kills = min(kills, 6)
	}
	dir := socket.Dir(t)
	host := func(name string) *trialHost {
		at := filepath.Join(dir, name)
		return &trialHost{image: at + ".img", journal: at, addr: at}
	}
	k := &killTrial{t: t, rng: rand.New(rand.NewPCG(seed, 0)), lead: host("a"), follow: host("b"), maybe: map[int64]uint64{},
		blocks: trialBlocks, growing: growing}
	t.Cleanup(func() {
		t.Logf("seed %d: %d kills, %d checkpoints, %d failovers, %d growths", seed, k.kills, k.checkpoints, k.failovers, k.growths)
		if t.Failed() {
			for _, h := range []*trialHost{k.lead, k.follow} {
				if h.of != nil {
					t.Logf("%s:\n%s", h.addr, strings.Join(h.of.said, "\n"))
				}
			}
		}
	})
	k.join(true)
	for k.kills < kills {
		k.round()
	}
	for !k.join(false) {
	}
}

// join starts what does not run, connects both, and has the copies compared; it reports whether it has come so far.
func (k *killTrial) join(first bool) bool {
	k.t.Helper()
	f, l := k.follow, k.lead
	if f.dead() {
		f.bury()
		k.lengthen(f, l)
		f.of = spawn(k.t, append([]string{"secondary", "-image", f.image, "-journal", f.journal, "-listen", f.addr}, f.size()...)...)
		said := f.of.hear("recovered", "waiting for a primary")
		if strings.Contains(said, "recovered") {
			k.recovered(said)
			said = f.of.hear("waiting for a primary")
		}
		if said == "" {
			return false
		}
	}
	f.next = &point{has: k.has, any: true}
	command := "reconnect"
	if l.dead() {
		l.bury()
		if !first {
			k.resolve()
			f.next.has = k.has
			k.lengthen(l, f)
			k.blocks = max(k.blocks, l.length())
		}
		l.of = spawn(k.t, append([]string{"primary", "-image", l.image, "-secondary", f.addr, "-listen", l.addr}, l.size()...)...)
		command = ""
	}
	said := l.of.order(command, "replication runs", "error", "diskreplica:")
	if strings.Contains(said, "let the local one grow") && f.length() > l.length() {
		if k.grow(l, f.length()) {
			k.blocks = f.length()
			said = l.of.order(command, "replication runs", "error", "diskreplica:")
		}
	}
	if !strings.Contains(said, "replication runs") {
		if said != "" && !f.dead() {
			k.t.Fatalf("the primary cannot connect: %q", said)
		}
		if command == "" {
			l.bury() // it ends if it cannot connect when it begins
		}
		return false
	}
	k.stood(said)
	if said := l.of.order("verify", "verified", "error", "different"); said != "" && !strings.Contains(said, " 0 KiB differed") && !f.dead() {
		k.t.Fatalf("verify says %q", said)
	}
	if said := l.of.order("status", "state"); said != "" && !f.dead() && !strings.Contains(said, "state running") {
		k.t.Fatalf("status says %q", said)
	}
	return !f.dead() && !l.dead()
}

// stood notes that the secondary has made the checkpoint that the line ends with.
func (k *killTrial) stood(line string) {
	at := k.follow.next
	at.any = false
	if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &at.epoch); err != nil {
		k.t.Fatalf("%q: %v", line, err)
	}
	k.follow.stands, k.follow.next = at, nil
	k.checkpoints++
}

// round kills somebody while the guest writes.
func (k *killTrial) round() {
	if k.rng.IntN(3) == 0 {
		k.shoot() // it may come while they find each other
	}
	if k.join(false) {
		if !k.lead.dead() && !k.follow.dead() {
			k.shoot()
		}
		k.guest()
	}
	for !k.lead.dead() && !k.follow.dead() { // it was meant for a process of before, or is on its way
		k.shoot()
		time.Sleep(time.Millisecond)
	}
	k.kills++
	if k.lead.dead() && !k.follow.dead() && k.rng.IntN(3) == 0 {
		k.failover()
		return
	}
	k.look()
}

// shoot kills somebody soon.
func (k *killTrial) shoot() {
	who := k.rng.IntN(5)
	after := time.Duration(k.rng.IntN(60_000)) * time.Microsecond
	for i, h := range []*trialHost{k.lead, k.follow} {
		if v := h.of; v != nil && (who == 4 || who%2 == i) {
			time.AfterFunc(after, v.kill)
		}
	}
}

// guest writes, and has checkpoints made, until somebody is dead.
func (k *killTrial) guest() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := nbd.Dial(ctx, "unix", k.lead.addr, nbd.ClientConfig{Export: diskName})
	if err != nil {
		if !k.lead.dead() {
			k.t.Fatal(err)
		}
		return
	}
	defer func() { c.Close() }()
	for !k.lead.dead() && !k.follow.dead() {
		if to := k.blocks + 1 + k.rng.Int64N(64); k.growing && k.rng.IntN(4) == 0 && to <= int64(len(k.has)) {
			if k.grow(k.follow, to) && k.grow(k.lead, to) {
				k.blocks = to
				longer, err := nbd.Dial(ctx, "unix", k.lead.addr, nbd.ClientConfig{Export: diskName})
				if err != nil {
					if !k.lead.dead() {
						k.t.Fatal(err)
					}
					return
				}
				c.Close()
				c = longer
			}
		}
		for range 1 + k.rng.IntN(12) {
			b := k.rng.Int64N(c.Size() / trialBlock)
			k.written++
			k.maybe[b] = k.written
			if _, err := c.WriteAt(bytes.Repeat(binary.LittleEndian.AppendUint64(nil, k.written), trialBlock/8), b*trialBlock); err != nil {
				if !k.lead.dead() {
					k.t.Fatal(err)
				}
				return
			}
			k.has[b] = k.written
			delete(k.maybe, b)
		}
		k.follow.next = &point{epoch: k.follow.stands.epoch + 1, has: k.has}
		if said := k.lead.of.order("checkpoint", "checkpoint ", "error"); strings.HasPrefix(said, "checkpoint ") {
			k.stood(said)
		} else if said != "" && !k.follow.dead() {
			k.t.Fatalf("checkpoint says %q", said)
		}
	}
}

// read returns what an image has.
func (k *killTrial) read(h *trialHost) (has contents) {
	k.t.Helper()
	p, err := os.ReadFile(h.image)
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range has[:len(p)/trialBlock] {
		block := p[i*trialBlock:][:trialBlock]
		has[i] = binary.LittleEndian.Uint64(block)
		if !bytes.Equal(block, bytes.Repeat(block[:8], trialBlock/8)) {
			k.t.Errorf("%s: block %d is of several writes", h.image, i)
		}
	}
	return has
}

// resolve looks at what a primary that was killed has left.
func (k *killTrial) resolve() {
	k.t.Helper()
	has := k.read(k.lead)
	for b, n := range has {
		if n != k.has[b] && n != k.maybe[int64(b)] {
			k.t.Fatalf("block %d is of write %d, and the guest was told that it is of %d", b, n, k.has[b])
		}
	}
	k.has = has
	clear(k.maybe)
}

// recovered checks what a secondary says when it has gone back to a checkpoint.
func (k *killTrial) recovered(line string) {
	k.t.Helper()
	var epoch uint64
	if _, err := fmt.Sscanf(line, "recovered the disk of epoch %d,", &epoch); err != nil {
		k.t.Fatalf("%q: %v", line, err)
	}
	k.at(k.follow, epoch)
}

// at checks that a secondary's image is that of a checkpoint which it has made, or may have made.
func (k *killTrial) at(h *trialHost, epoch uint64) {
	k.t.Helper()
	has := k.read(h)
	for _, p := range []*point{h.stands, h.next} {
		if p != nil && (p.epoch == epoch || p.any) && p.has == has {
			h.stands, h.next = &point{epoch: epoch, has: has}, nil
			return
		}
	}
	k.t.Fatalf("the secondary is at epoch %d, and its image is not that of the last checkpoint, %+v, nor of the next", epoch, h.stands)
}

// look has both images described, and checks what is said.
func (k *killTrial) look() {
	k.t.Helper()
	for _, h := range []*trialHost{k.lead, k.follow} {
		if h.dead() {
			h.bury()
		}
	}
	said := k.describe(k.lead)
	switch {
	case !strings.Contains(said, "the guest's copy, clean, "):
		k.t.Fatalf("of the primary's image it is said: %s", said)
	case !k.lead.saysWhetherUsed(said):
		k.t.Fatalf("dead: %v, and it is said: %s", k.lead.dead(), said)
	}
	for k.describeCopy() {
		time.Sleep(time.Millisecond)
	}
}

// describeCopy checks what is said of the secondary's image, and reports whether to ask again.
func (k *killTrial) describeCopy() (again bool) {
	k.t.Helper()
	said := k.describe(k.follow)
	words := []string{"a copy, inconsistent"} // the journal can bring it back
	if k.follow.stands == nil {
		words = append(words, "of no known disk")
	}
	var journal string
	if r, err := replication.ReadJournal(k.follow.journal); err == nil && r.State != replication.Running {
		words = append(words, "a copy, clean") // it had come back, and nothing was changed since
	} else if err == nil && !slices.ContainsFunc([]*point{k.follow.stands, k.follow.next}, func(p *point) bool { return p != nil && (p.any || p.epoch == r.Epoch) }) {
		k.t.Fatalf("the journal is at epoch %d, the last checkpoint was %+v", r.Epoch, k.follow.stands)
	} else if journal = fmt.Sprint(r, err); err == nil && strings.Contains(said, "a copy, clean") {
		// The journal is told first that the copy is going to change, the image next, and then it changes.
		if k.follow.of != nil {
			if k.follow.dead() {
				k.follow.bury()
			}
			return true
		}
		k.at(k.follow, r.Epoch)
		words = append(words, "a copy, clean")
	}
	if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(said, w) }) || !k.follow.saysWhetherUsed(said) {
		k.t.Fatalf("dead: %v, and of the secondary's image it is said: %s (%s)", k.follow.dead(), said, journal)
	}
	return false
}

// describe returns what the command status says of an image.
func (k *killTrial) describe(h *trialHost) string {
	k.t.Helper()
	var out bytes.Buffer
	if err := run(context.Background(), []string{"status", h.image}, nil, &out, false); err != nil {
		k.t.Fatal(err)
	}
	return out.String()
}

// failover has the secondary go on alone, of which a kill may come in the middle.
func (k *killTrial) failover() {
	k.t.Helper()
	l, f := k.lead, k.follow
	l.bury()
	k.resolve()
	if k.rng.IntN(2) == 0 {
		time.AfterFunc(time.Duration(k.rng.IntN(8000))*time.Microsecond, f.of.kill)
	}
	said := f.of.order("failover", "failover: the disk", "error")
	if strings.Contains(said, "not running") { // it never ran, or has come back from a crash
		k.look()
		return
	}
	wentOn := strings.Contains(said, "failover: the disk")
	if !wentOn && said != "" {
		k.t.Fatalf("failover says %q", said)
	}
	f.bury()
	k.kills++
	// Whatever was done of it is completed, or undone.
	again := spawn(k.t, "secondary", "-image", f.image, "-journal", f.journal, "-listen", f.addr)
	if said := again.hear("recovered", "waiting for a primary"); strings.Contains(said, "recovered") {
		k.recovered(said)
		again.hear("waiting for a primary")
	}
	here, err := replication.ReadIdentity(f.image)
	if err != nil {
		k.t.Fatal(err)
	}
	if wentOn && !here.Writes {
		k.t.Fatalf("the guest has gone on, and its copy is %v", here)
	}
	f.of = again
	if !here.Writes {
		return
	}
	k.failovers++
	has := k.read(f)
	if has != f.stands.has && (f.next == nil || has != f.next.has) {
		k.t.Fatal("the guest goes on with a disk that is not that of a checkpoint")
	}
	there, err := replication.ReadIdentity(l.image)
	if n, failed := replication.Newest(here, there); err != nil || failed != nil || n != -1 {
		k.t.Fatalf("the newest of %v and %v is %d: %v, %v", here, there, n, err, failed)
	}
	if k.rng.IntN(2) == 0 { // somebody starts the old primary by mistake
		k.lengthen(l, f)
		old := spawn(k.t, "primary", "-image", l.image, "-secondary", f.addr, "-listen", l.addr)
		if said := old.hear("replication runs", "outdated"); !strings.Contains(said, "outdated") {
			k.t.Fatalf("the old primary says %q", said)
		}
		old.kill()
		old.rest()
		if said := k.describe(l); !strings.Contains(said, "outdated") {
			k.t.Fatalf("of the old primary's image it is said: %s", said)
		}
	}
	f.bury()
	f.stands, f.next, l.stands, l.next = nil, nil, nil, nil
	k.lead, k.follow, k.has = f, l, has
}
