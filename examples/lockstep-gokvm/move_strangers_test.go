package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// A source whose connection has broken comes again, and its guest may stand still until it is heard.
func TestVisitorsThatSayNothingKeepNoGuestOut(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := &roamer{o: options{name: "guest", on: "127.0.0.1:0"}, p: newPrinter(options{}, stdio{}, newConsole(stdio{}, false, nil)), life: ctx}
	l, err := net.Listen("tcp", r.o.on)
	if err != nil {
		t.Fatal(err)
	}
	r.group.Go(func() { r.accept(l) })
	defer r.group.Wait()
	defer l.Close()
	defer cancel()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	visit := func() (answer moveAnswer, err error) {
		for range maxVisitors {
			dial()
		}
		conn := dial()
		if err := writeMessage(conn, moveHello{Guest: "another"}); err != nil {
			return answer, err
		}
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		err = readMessage(conn, &answer)
		return answer, err
	}
	answer, err := visit()
	for n := 0; err != nil && n < 3; n++ { // this process may have stood for as long as a visitor has
		answer, err = visit()
	}
	if err != nil || answer.State != moveUnknown {
		t.Errorf("%+v, %v", answer, err)
	}
}

func TestAHostThatAnswersNothingIsNamed(t *testing.T) {
	here, there := net.Pipe()
	go func() {
		there.Read(make([]byte, 4)) // it takes a little, and goes
		there.Close()
	}()
	o := options{peer: "other:1"}
	o.hw.dial = func(context.Context, string) (net.Conn, error) { return here, nil }
	if _, _, err := callPeer(t.Context(), o, nil, moveHello{}); err == nil || !strings.Contains(err.Error(), "no answer from the other host at other:1") {
		t.Errorf("%v", err)
	}
}
