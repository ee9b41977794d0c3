package main

import (
	"net"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
)

// guardianStatus is printed by "lockstep-qemu status" of a guardian.
type guardianStatus struct {
	State      string `json:"state"`
	Why        string `json:"why"`
	Generation uint64 `json:"generation"`
	Standby    bool   `json:"standby"`    // whether the standby answers
	Checkpoint uint64 `json:"checkpoint"` // the standby's last
	Paused     bool   `json:"paused"`     // by an operator, and held so
	Rescued    int    `json:"rescued"`    // how often the guest was told to run on
	QEMU       string `json:"qemu"`       // what it owes an answer to, in words; "": nothing that took long
}

// says notes the state for "lockstep-qemu status", and for a standby that comes back.
func (g *guardian) says(state standby.GuardState, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.State, g.status.Why = state.String(), why
	if state == standby.Unprotected && g.word.Say == "" {
		g.word = standby.ControlMessage{Say: standby.SaidAlone, Generation: g.generation}
	}
}

func (g *guardian) say(text string, object any) {
	g.p.say("%s", text)
	g.p.object(object)
}

// report returns the answer to "lockstep-qemu status".
func (g *guardian) report() any { return g.standing() }

func (g *guardian) standing() guardianStatus {
	g.mu.Lock()
	st := g.status
	st.Generation, st.Paused = g.generation, g.still && g.settling == 0
	g.mu.Unlock()
	_, st.QEMU, _ = unanswering(g.owing(), g.slowness())
	return st
}

// stillAlive tells systemd's watchdog that this process lives, until the function that it
// returns is called: the caller waits for something that may take long.
func stillAlive() (stop func()) {
	var wait sync.WaitGroup
	done := make(chan struct{})
	wait.Go(func() {
		t := time.NewTicker(10 * tick)
		defer t.Stop()
		for {
			notify("WATCHDOG=1")
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wait.Wait() }
}

// notify sends a state to systemd, if systemd has asked for that (sd_notify(3)).
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
