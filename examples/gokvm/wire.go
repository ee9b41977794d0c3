package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// The connections of a pair, all to the one port of the secondary. Each begins
// with a line that says what it is for.
const (
	chControl   = "control"   // what both agree on, and how they part; see peer.go
	chCOLO      = "colo"      // the session
	chHeartbeat = "heartbeat" // signs of life
	chDisk      = "disk"      // NBD
	chNetwork   = "network"   // the guest's input to the secondary, its guest's output back
)

var channels = []string{chControl, chCOLO, chHeartbeat, chDisk, chNetwork}

const greeting = "lockstep-gokvm"

// greetTimeout is how long a connection may take to say what it is for.
const greetTimeout = 30 * time.Second

// dialChannel connects to the secondary.
func dialChannel(ctx context.Context, address, channel, token string) (net.Conn, error) {
	d := net.Dialer{Timeout: greetTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(greetTimeout))
	if _, err := fmt.Fprintf(conn, "%s %s %s\n", greeting, channel, token); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, conn.SetDeadline(time.Time{})
}

// A switchboard hands out the connections that arrive at a port, by what they
// are for. A channel that nobody waits for keeps the newest one.
type switchboard struct {
	l     net.Listener
	lines map[string]chan net.Conn

	mu    sync.Mutex
	token string // of the pair, once there is one
}

func newSwitchboard(address string) (*switchboard, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &switchboard{l: l, lines: make(map[string]chan net.Conn)}
	for _, c := range channels {
		s.lines[c] = make(chan net.Conn, 1)
	}
	return s, nil
}

// admit lets in what belongs to the pair of that token from now on.
func (s *switchboard) admit(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// serve accepts until ctx ends, and then closes what nobody took.
func (s *switchboard) serve(ctx context.Context) error {
	var group sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { s.l.Close() })
	defer func() {
		stop()
		s.l.Close()
		group.Wait()
		for _, line := range s.lines {
			select {
			case conn := <-line:
				conn.Close()
			default:
			}
		}
	}()
	for {
		conn, err := s.l.Accept()
		if err != nil {
			return err
		}
		group.Go(func() {
			channel, err := s.greeted(ctx, conn)
			if err != nil {
				conn.Close() // whoever it was, it is none of ours
				return
			}
			s.put(channel, conn)
		})
	}
}

func (s *switchboard) put(channel string, conn net.Conn) {
	for {
		select {
		case s.lines[channel] <- conn:
			return
		default:
		}
		select {
		case old := <-s.lines[channel]:
			old.Close()
		default:
		}
	}
}

// greeted reads the first line, and nothing beyond it.
func (s *switchboard) greeted(ctx context.Context, conn net.Conn) (channel string, err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(greetTimeout))
	var line []byte
	for b := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; {
		if len(line) > 100 {
			return "", errors.New("no greeting")
		}
		if _, err := conn.Read(b); err != nil {
			return "", err
		}
		line = append(line, b[0])
	}
	words := strings.Split(strings.TrimSuffix(string(line), "\n"), " ")
	if len(words) != 3 || words[0] != greeting || s.lines[words[1]] == nil {
		return "", errors.New("no greeting")
	}
	s.mu.Lock()
	token := s.token
	s.mu.Unlock()
	if words[2] != token && !(words[1] == chControl && token == "") {
		return "", errors.New("of another pair")
	}
	return words[1], conn.SetDeadline(time.Time{})
}

// take waits for a connection.
func (s *switchboard) take(ctx context.Context, channel string) (net.Conn, error) {
	select {
	case conn := <-s.lines[channel]:
		return conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
