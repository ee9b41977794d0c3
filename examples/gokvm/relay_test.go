package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// A relay stands between the sides, and cuts connections by what they are for.
type relay struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	conns map[string][]net.Conn
	made  map[string]int
	group sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, conns: make(map[string][]net.Conn), made: make(map[string]int)}
	r.group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.group.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		for _, c := range channels {
			r.cut(c)
		}
		r.group.Wait()
	})
	return r
}

func (r *relay) pass(a net.Conn) {
	defer a.Close()
	b, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer b.Close()
	in := bufio.NewReader(a)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	channel := strings.Fields(line)[1]
	r.mu.Lock()
	r.conns[channel] = append(r.conns[channel], a, b)
	r.made[channel]++
	r.mu.Unlock()
	fmt.Fprint(b, line)
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(a, b)
		a.Close()
	})
	io.Copy(b, in)
	b.Close()
	back.Wait()
}

func (r *relay) cut(channel string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns[channel] {
		c.Close()
	}
	r.conns[channel] = nil
}

func (r *relay) count(channel string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made[channel]
}

func TestWhenOnlyTheSessionBreaksThePrimaryGoesOn(t *testing.T) {
	w := newSimWorld(t)
	r := newRelay(t, w.listen())
	w.protect(r.l.Addr().String())
	w.hears(modePrimary, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
	r.cut(chCOLO)
	w.hears(modePrimary, `"name":"alone"`)
	if err := w.ended(modeSecondary); err != nil {
		t.Errorf("the secondary: %v", err)
	}
	w.hears(modeSecondary, "the other side goes on with the guest")
	w.moreLeaves(modePrimary)
	w.machines[modePrimary].ends <- gokvmhost.ErrPowerOff
	if err := w.ended(modePrimary); err != nil {
		t.Errorf("the primary: %v", err)
	}
	if w.left[modeSecondary] != 0 {
		t.Error("the secondary's guest has been heard")
	}
	w.judge()
}

func TestTheNetworksConnectionIsMadeAgain(t *testing.T) {
	w := newSimWorld(t)
	r := newRelay(t, w.listen())
	w.protect(r.l.Addr().String())
	w.hears(modePrimary, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
	r.cut(chNetwork)
	w.until("another connection", func() bool { return r.count(chNetwork) == 2 })
	w.moreLeaves(modePrimary)
	w.machines[modePrimary].ends <- gokvmhost.ErrPowerOff
	if err := w.ended(modePrimary); err != nil {
		t.Errorf("the primary: %v", err)
	}
	if err := w.ended(modeSecondary); err != nil {
		t.Errorf("the secondary: %v", err)
	}
	w.judge()
}

func TestALostDiskEndsThePairAndNotTheGuest(t *testing.T) {
	w := newSimWorld(t)
	r := newRelay(t, w.listen())
	w.protect(r.l.Addr().String())
	w.hears(modePrimary, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
	r.cut(chDisk)
	w.hears(modePrimary, `"name":"alone"`)
	if err := w.ended(modeSecondary); err != nil {
		t.Errorf("the secondary: %v", err)
	}
	w.moreLeaves(modePrimary)
	w.judge()
}

func TestWithoutAnythingBetweenThemOnlyTheArbiterHelps(t *testing.T) {
	w := newSimWorld(t)
	lock := t.TempDir() + "/lock" // mkdir is atomic
	r := newRelay(t, w.listen("-arbiter", "mkdir "+lock))
	w.protect(r.l.Addr().String(), "-arbiter", "mkdir "+lock)
	w.hears(modePrimary, `"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":5`)
	r.l.Close()
	for _, c := range channels {
		r.cut(c)
	}
	var winner, loser string
	select {
	case err := <-w.done[modePrimary]:
		w.done[modePrimary] <- err
		winner, loser = modeSecondary, modePrimary
	case err := <-w.done[modeSecondary]:
		w.done[modeSecondary] <- err
		winner, loser = modePrimary, modeSecondary
	}
	if err := w.ended(loser); !errors.Is(err, colo.ErrRefused) {
		t.Errorf("the %s: %v", loser, err)
	}
	w.hears(winner, `"name":"alone"`)
	w.moreLeaves(winner)
	var s struct{ Summary summary }
	said := strings.TrimSpace(w.hears(loser, `"summary"`))
	if err := json.Unmarshal([]byte(said[strings.LastIndexByte(said, '\n')+1:]), &s); err != nil || s.Summary.Failover != nil || s.Summary.Error == "" {
		t.Errorf("the %s's summary: %+v, %v", loser, s.Summary, err)
	}
	w.judge()
}
