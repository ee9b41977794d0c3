package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/socket"
)

// The generation is granted, and on record on the disk, before the guest is run: that it has not run
// in it nobody but a person knows.
func TestASavedGuestThatCouldNotBeRunGoesOnWithAPersonsWord(t *testing.T) {
	w := newSimWorld(t)
	name := filepath.Join(socket.Dir(t), "guest")
	a := w.start("a", modePrimary, "-save", name)
	b := w.start("b", modeSecondary)
	w.inStep(a)
	w.moreLeaves(a)
	w.presses(a, 'w')
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}

	w.mu.Lock()
	w.stuck = errors.New("no vCPU today")
	left := w.left["a"]
	w.mu.Unlock()
	a = w.start("a", modePrimary, "-resume", name)
	if err := w.ended(a); err == nil || !strings.Contains(err.Error(), "start the guest: ") {
		t.Fatalf("it was not run: %v", err)
	}
	w.mu.Lock()
	w.stuck = nil
	w.mu.Unlock()

	a = w.start("a", modePrimary, "-resume", name)
	const refused = "the disks here are of generation "
	_, words, _ := strings.Cut(w.hears(a, refused), refused)
	var granted, saved uint64
	if _, err := fmt.Sscanf(words, "%d, the guest of generation %d", &granted, &saved); err != nil || granted != saved+1 {
		t.Fatalf("%.80s, %v", words, err)
	}
	a.stop(nil)
	w.ended(a)
	w.mu.Lock()
	if w.left["a"] != left {
		t.Error("it went on")
	}
	w.mu.Unlock()

	again := w.hearsNext(b, phase("protected"))
	a = w.start("a", modePrimary, "-resume", name, "-resume-generation", fmt.Sprint(granted))
	again()
	w.moreLeaves(a)
	w.judge()
}

func TestADiskWhoseSessionEndsForASaveIsNoNews(t *testing.T) {
	const news = "the copies drift apart"
	broken := event.Record{Event: event.DiskBroken{Disk: "disk", Error: "unexpected EOF"}}
	_, said := printed(options{}, func(p *printer) {
		p.saves(true)
		p.event(broken)
		p.saves(false)
	})
	if strings.Contains(said, news) {
		t.Errorf("while the guest is saved: %q", said)
	}
	if _, said = printed(options{}, func(p *printer) {
		p.saves(true)
		p.saves(false) // and was not
		p.event(broken)
	}); !strings.Contains(said, news) {
		t.Errorf("afterwards: %q", said)
	}
}
