package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// The pairs here are whole: two sides on loopback, with disk and network, but
// with a guest in Go, whose frames an oracle understands.

// simGuest is the guest of both sides.
func simGuest() colotest.GuestConfig {
	return colotest.GuestConfig{Touch: 8, Interval: time.Millisecond, Disk: simDisk, DiskEvery: 4, Seed: 3}
}

const simDisk = 256 << 10

// A simMachine is a machine without a hypervisor.
type simMachine struct {
	*colotest.Guest
	ends chan error // what ends the guest by itself
}

func newSimMachine(devices gokvmhost.Config) (*simMachine, error) {
	cfg := simGuest()
	if devices.Uplink != nil {
		cfg.Output = devices.Uplink.WritePacket
	}
	if devices.Disk != nil {
		cfg.Write = func(p []byte, off int64, flush bool) error {
			_, err := devices.Disk.WriteAt(p, off)
			if err == nil && flush {
				err = devices.Disk.Sync()
			}
			return err
		}
	}
	g, err := colotest.NewGuest(cfg)
	return &simMachine{g, make(chan error)}, err
}

func (m *simMachine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		select {
		case err := <-m.ends:
			cancel(err)
		case <-ctx.Done():
		}
	})
	return m.Guest.Run(ctx)
}

func (m *simMachine) DirtyLog() ram.DirtyLog      { return m.Guest }
func (m *simMachine) ReceivePacket([]byte) error  { return nil }
func (m *simMachine) Input(p []byte) (int, error) { return len(p), nil }

// A simCable is where the frames of a side leave, to the world's client.
type simCable struct {
	w    *simWorld
	side string

	once   sync.Once
	closed chan struct{}
}

func (c *simCable) ReadPacket() ([]byte, error) {
	<-c.closed
	return nil, os.ErrClosed
}

func (c *simCable) WritePacket(p []byte) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if bytes.Equal(p, announcement(c.w.mac)) {
		c.w.announced[c.side]++
		return nil
	}
	c.w.left[c.side]++
	c.w.oracle.Frame(p)
	return nil
}

func (c *simCable) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// A simWorld is a pair and its client.
type simWorld struct {
	t         *testing.T
	mac       [6]byte
	secondary []string // its arguments

	mu        sync.Mutex
	oracle    *colotest.Oracle
	left      map[string]int // frames, by side
	announced map[string]int
	machines  map[string]*simMachine
	said      map[string]*bytes.Buffer
	done      map[string]chan error
	stop      map[string]context.CancelFunc
	disks     map[string]string
}

func newSimWorld(t *testing.T) *simWorld {
	t.Helper()
	oracle, err := colotest.NewOracle(simGuest())
	if err != nil {
		t.Fatal(err)
	}
	w := &simWorld{
		t: t, oracle: oracle, left: make(map[string]int), announced: make(map[string]int),
		machines: make(map[string]*simMachine), said: make(map[string]*bytes.Buffer),
		done: make(map[string]chan error), stop: make(map[string]context.CancelFunc), disks: make(map[string]string),
	}
	for _, side := range []string{modePrimary, modeSecondary} {
		w.disks[side] = filepath.Join(t.TempDir(), side)
		if err := os.WriteFile(w.disks[side], make([]byte, simDisk), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Write is what a side says.
type sayings struct {
	w    *simWorld
	side string
}

func (s sayings) Write(p []byte) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.said[s.side].Write(p)
}

// start runs a side with a command line.
func (w *simWorld) start(side string, args ...string) {
	w.t.Helper()
	args = append([]string{side, "-mem", "32M", "-tap", "tap0", "-disk", w.disks[side], "-json", "-beat", "20ms", "-lost-after", "10s"}, args...)
	o, err := parseOptions(args, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mac = o.mac
	w.said[side] = new(bytes.Buffer)
	o.hw = hardware{
		probe: func() error { return nil },
		machine: func(_ options, devices gokvmhost.Config) (machine, error) {
			m, err := newSimMachine(devices)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.machines[side] = m
			return m, err
		},
		cable: func(options) (cable, error) {
			return &simCable{w: w, side: side, closed: make(chan struct{})}, nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	std := stdio{strings.NewReader(""), sayings{w, side}, sayings{w, side}}
	c := newConsole(std, o.json, cancel)
	p := newPrinter(o, std, c)
	done := make(chan error, 1)
	go func() {
		run := runPrimary
		if side == modeSecondary {
			run = runSecondary
		}
		err := run(ctx, o, c, p)
		p.end(err)
		done <- err
	}()
	w.done[side], w.stop[side] = done, cancel
	w.t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(simPatience):
		}
		if w.t.Failed() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Logf("the %s has said:\n%s", side, w.said[side])
		}
	})
}

// simPatience is how long anything may take that should take a moment.
const simPatience = 30 * time.Second

// until waits for something.
func (w *simWorld) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(simPatience); ; time.Sleep(2 * time.Millisecond) {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// hears waits until a side has said a text.
func (w *simWorld) hears(side, text string) string {
	w.t.Helper()
	var all string
	w.until(side+" to say "+text, func() bool {
		all = w.said[side].String()
		return strings.Contains(all, text)
	})
	return all
}

// listen starts a secondary and returns where it listens.
func (w *simWorld) listen(args ...string) (address string) {
	w.t.Helper()
	w.start(modeSecondary, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	said := w.hears(modeSecondary, `"name":"listening"`)
	_, address, _ = strings.Cut(said, `on `)
	address, _, _ = strings.Cut(address, `"`)
	return address
}

// protect starts a primary.
func (w *simWorld) protect(address string, args ...string) {
	w.t.Helper()
	w.start(modePrimary, append([]string{"-peer", address, "-kernel", "none", "-interval", "20ms", "-min-interval", "5ms"}, args...)...)
}

// pair starts both sides and waits until checkpoints happen.
func (w *simWorld) pair(args ...string) {
	w.t.Helper()
	w.protect(w.listen(w.secondary...), args...)
	w.hears(modePrimary, `"name":"protected"`)
	w.hears(modePrimary, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
}

// ended waits for the end of a side.
func (w *simWorld) ended(side string) error {
	w.t.Helper()
	select {
	case err := <-w.done[side]:
		w.done[side] <- err // for the cleanup
		return err
	case <-time.After(simPatience):
		w.t.Fatalf("the %s does not end", side)
		return nil
	}
}

// moreLeaves waits for a side's frames.
func (w *simWorld) moreLeaves(side string) {
	w.t.Helper()
	w.mu.Lock()
	enough := w.left[side] + 50
	w.mu.Unlock()
	w.until("frames of the "+side, func() bool { return w.left[side] >= enough })
}

// judge asks the client.
func (w *simWorld) judge() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.oracle.Verdict(); v.Frames == 0 || v.Lost+v.Contradicted+v.Corrupted > 0 {
		w.t.Errorf("the client: %+v", v)
	}
}

func TestAPairThatIsOrderedToEndEnds(t *testing.T) {
	for _, mode := range []string{"-continuous=false", "-continuous"} {
		t.Run(mode, func(t *testing.T) {
			w := newSimWorld(t)
			w.pair(mode)
			w.moreLeaves(modePrimary)
			w.machines[modePrimary].ends <- gokvmhost.ErrPowerOff
			if err := w.ended(modePrimary); err != nil {
				t.Errorf("the primary: %v", err)
			}
			if err := w.ended(modeSecondary); err != nil {
				t.Errorf("the secondary: %v", err)
			}
			for side, text := range map[string]string{modePrimary: "the guest switched itself off", modeSecondary: "the guest switched itself off"} {
				if said := w.hears(side, text); strings.Contains(said, `"name":"alone"`) || strings.Contains(said, `"failover"`) {
					t.Errorf("the %s went on", side)
				}
			}
			if w.left[modeSecondary] != 0 {
				t.Error("the secondary's guest has been heard")
			}
			w.judge()
		})
	}
}

func TestTheSecondaryGoesOnWhenThePrimaryFails(t *testing.T) {
	for _, mode := range []string{"-continuous=false", "-continuous", "-late-resume"} {
		t.Run(mode, func(t *testing.T) {
			w := newSimWorld(t)
			w.secondary = []string{"-journal", filepath.Join(t.TempDir(), "journal"), "-overlay", "2M"}
			w.pair(mode)
			w.moreLeaves(modePrimary)
			broken := errors.New("the vCPU broke")
			w.machines[modePrimary].ends <- broken
			if err := w.ended(modePrimary); !errors.Is(err, broken) {
				t.Errorf("the primary: %v", err)
			}
			w.hears(modeSecondary, `"name":"alone"`)
			w.moreLeaves(modeSecondary)
			w.until("the announcements", func() bool { return w.announced[modeSecondary] == announcements })
			w.machines[modeSecondary].ends <- gokvmhost.ErrPowerOff
			if err := w.ended(modeSecondary); err != nil {
				t.Errorf("the secondary: %v", err)
			}
			w.judge()
		})
	}
}

func TestThePrimaryGoesOnWhenTheSecondaryLeaves(t *testing.T) {
	w := newSimWorld(t)
	w.pair()
	w.stop[modeSecondary]()
	w.ended(modeSecondary)
	w.hears(modePrimary, `"name":"alone"`)
	w.moreLeaves(modePrimary)
	w.machines[modePrimary].ends <- gokvmhost.ErrReset
	if err := w.ended(modePrimary); err != nil {
		t.Errorf("the primary: %v", err)
	}
	w.hears(modePrimary, "the guest restarts")
	w.judge()
}

func TestAnOrderOnThePrimaryEndsBoth(t *testing.T) {
	w := newSimWorld(t)
	w.pair()
	w.stop[modePrimary]()
	w.ended(modePrimary)
	if err := w.ended(modeSecondary); err != nil {
		t.Errorf("the secondary: %v", err)
	}
	if said := w.hears(modeSecondary, "as ordered on the primary's host"); strings.Contains(said, `"name":"alone"`) {
		t.Error("the secondary went on")
	}
	w.judge()
}

func TestASecondarysGuestMayEndBeforeThePrimarys(t *testing.T) {
	w := newSimWorld(t)
	w.pair()
	for range 3 { // a commit brings it back each time
		w.machines[modeSecondary].ends <- gokvmhost.ErrPowerOff
	}
	w.moreLeaves(modePrimary)
	w.machines[modePrimary].ends <- errors.New("the vCPU broke")
	w.ended(modePrimary)
	w.hears(modeSecondary, `"name":"alone"`)
	w.moreLeaves(modeSecondary)
	w.judge()
}

func TestARefusedSideDoesNotGoOn(t *testing.T) {
	w := newSimWorld(t)
	w.protect(w.listen("-arbiter", "echo the lock is taken; false"))
	w.hears(modePrimary, `"name":"protected"`)
	w.machines[modePrimary].ends <- errors.New("the vCPU broke")
	w.ended(modePrimary)
	if err := w.ended(modeSecondary); !errors.Is(err, colo.ErrRefused) || !strings.Contains(err.Error(), "the lock is taken") {
		t.Errorf("the secondary: %v", err)
	}
	if w.left[modeSecondary] != 0 {
		t.Error("it was heard all the same")
	}
}

func TestSidesThatDifferBothSayWhy(t *testing.T) {
	w := newSimWorld(t)
	w.protect(w.listen("-mem", "64M"))
	for _, side := range []string{modePrimary, modeSecondary} {
		if err := w.ended(side); err == nil || !strings.Contains(err.Error(), "memory (-mem): 32M on the primary, 64M on the secondary") {
			t.Errorf("the %s: %v", side, err)
		}
	}
}

func TestASecondaryWhosePrimaryLeavesEarlyEnds(t *testing.T) {
	w := newSimWorld(t)
	address := w.listen()
	conn, err := dialChannel(t.Context(), address, chControl, "-")
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseOptions([]string{"primary", "-peer", address, "-kernel", "none", "-mem", "32M", "-tap", "tap0", "-lost-after", "10s"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := greet(conn, newHello(o, simDisk)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := w.ended(modeSecondary); !errors.Is(err, errLeft) {
		t.Errorf("the secondary: %v", err)
	}
}
