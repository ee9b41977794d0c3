package main

import (
	"errors"
	"net"
	"testing"
	"time"
)

func TestWhoeverConnectsToAPageAgainAndAgainTakesNoDescriptorsFromTheGuest(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := newVisitors(t.Context(), l)
	defer v.Close()
	var here []net.Conn
	comes := func() {
		t.Helper()
		there, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { there.Close() })
		conn, err := v.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		here = append(here, conn)
	}
	open := func(conn net.Conn) bool { return !errors.Is(conn.SetDeadline(time.Time{}), net.ErrClosed) }
	for range maxVisitors {
		comes()
	}
	here[1].Close() // it has seen the page
	comes()
	if !open(here[0]) {
		t.Error("one was ended though another had left")
	}
	comes()
	if open(here[0]) {
		t.Errorf("the oldest of more than %d is there", maxVisitors)
	}
	for i, conn := range here[2:] {
		if !open(conn) {
			t.Errorf("number %d was ended", i+2)
		}
	}
}
