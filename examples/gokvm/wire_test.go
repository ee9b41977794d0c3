package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// startBoard serves a switchboard on loopback until the test ends.
func startBoard(t *testing.T) (*switchboard, string) {
	t.Helper()
	s, err := newSwitchboard("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { s.serve(ctx) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return s, s.l.Addr().String()
}

// agreement runs both halves on one connection.
func agreement(t *testing.T, p, s hello, ready func() error) (token, admitted string, primary, secondary error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		done <- receive(b, s, new(hello), ready, func(token string) { admitted = token })
	}()
	token, primary = greet(a, p)
	secondary = <-done
	return token, admitted, primary, secondary
}

func TestSidesThatFitAgreeOnAToken(t *testing.T) {
	h := newHello(options{mem: 1 << 20, vcpus: 2, tap: "tap0", lost: time.Second}, 4096)
	built := false
	token, admitted, p, s := agreement(t, h, h, func() error { built = true; return nil })
	if p != nil || s != nil || token == "" || token != admitted || !built {
		t.Errorf("token %q, admitted %q, errors %v and %v", token, admitted, p, s)
	}
}

func TestWhatDiffersIsSaidOnBothSides(t *testing.T) {
	base := newHello(options{mem: 1 << 30, vcpus: 2, tap: "tap0", lost: time.Second}, 4096)
	for want, change := range map[string]func(*hello){
		"memory (-mem): 1G on the primary, 512M on the secondary":                      func(h *hello) { h.Memory = 512 << 20 },
		"CPUs (-vcpus): 2 on the primary, 1 on the secondary":                          func(h *hello) { h.VCPUs = 1 },
		"size of the disk (-disk), bytes: 4096 on the primary, none on the secondary":  func(h *hello) { h.Disk = 0 },
		"network card (-tap, -mac): 00:00:00:00:00:00 on the primary, none on the sec": func(h *hello) { h.NIC = "" },
		"program version: ":       func(h *hello) { h.Version = "another" },
		"-lost-after: 1s on the ": func(h *hello) { h.LostNS = 5 },
	} {
		theirs := base
		change(&theirs)
		_, admitted, p, s := agreement(t, base, theirs, func() error { t.Error("built all the same"); return nil })
		if p == nil || s == nil || !strings.Contains(p.Error(), want) || !strings.Contains(s.Error(), want) || !errors.Is(s, errConfig) || !errors.Is(p, errRefused) {
			t.Errorf("want %q; the primary says %v, the secondary %v", want, p, s)
		}
		if admitted != "" {
			t.Error("a token was given out")
		}
	}
}

func TestASecondaryThatCannotSaysSo(t *testing.T) {
	h := newHello(options{}, 0)
	_, admitted, p, s := agreement(t, h, h, func() error { return errors.New("no memory left") })
	if p == nil || s == nil || !strings.Contains(p.Error(), "no memory left") || admitted != "" {
		t.Errorf("the primary says %v, the secondary %v", p, s)
	}
}

func TestAMessageIsBounded(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		b.Write(bytes.Repeat([]byte("x"), maxMessage+1))
		b.Close()
	}()
	if err := readMessage(a, new(note)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsAreToldApart(t *testing.T) {
	s, addr := startBoard(t)
	s.admit("secret")
	for _, c := range channels {
		conn, err := dialChannel(t.Context(), addr, c, "secret")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("the rest of " + c)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range channels {
		conn, err := s.take(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("the rest of "+c))
		if _, err := conn.Read(got); err != nil || string(got) != "the rest of "+c {
			t.Errorf("%s: %q, %v", c, got, err)
		}
		conn.Close()
	}
}

func TestStrangersAreNotLetIn(t *testing.T) {
	s, addr := startBoard(t)
	wantClosed := func(why, first string) {
		t.Helper()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte(first))
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: read %d bytes", why, n)
		}
	}
	wantClosed("before there is a pair, only control", "lockstep-gokvm colo -\n")
	s.admit("secret")
	wantClosed("there is a pair", "lockstep-gokvm control -\n")
	wantClosed("a wrong token", "lockstep-gokvm colo wrong\n")
	wantClosed("no such channel", "lockstep-gokvm shell secret\n")
	wantClosed("another protocol", "GET / HTTP/1.1\r\n\r\n")
	wantClosed("no end of the line", strings.Repeat("x", 200))
	for _, c := range channels {
		select {
		case <-s.lines[c]:
			t.Errorf("%s has a connection", c)
		default:
		}
	}
}

func TestANewerConnectionTakesTheOldOnesPlace(t *testing.T) {
	s, _ := startBoard(t)
	a1, a2 := net.Pipe()
	b1, b2 := net.Pipe()
	defer b2.Close()
	s.put(chNetwork, a1)
	s.put(chNetwork, b1)
	if _, err := a2.Read(make([]byte, 1)); err == nil {
		t.Error("the old one is still open")
	}
	conn, err := s.take(t.Context(), chNetwork)
	if err != nil || conn != b1 {
		t.Errorf("got %v, %v", conn, err)
	}
	conn.Close()
}
