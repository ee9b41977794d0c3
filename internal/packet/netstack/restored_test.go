package netstack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Why the guests of the two failovers leave nothing to their device (see offloads): a
// stack that does, and is saved and restored, sends other data than it was given. Here
// nothing is between it and its client, and there is one guest at a time: no proxy, no
// comparison, no translation. A stack that is never restored, and one that leaves nothing to
// its device, send what they were given.
//
// Whether wrong data comes is a matter of moments: on one processor it may not. The same
// fault can end the process instead, where the stack finds that the list of what it sent does
// not fit what is acknowledged: that is the fault as well. When the log says on every machine
// that none of the two came, the fault is gone, and offloads can be for each run.
func TestAStackThatWasRestoredSendsOtherDataByItself(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const child, wrong, right = "LOCKSTEP_NETSTACK_MOVED", "\nother data\n", "\nall data\n"
	for _, c := range []struct {
		name       string
		gso, moves bool
		want       string
	}{
		{"segments of many packets", true, true, wrong},
		{"never restored", true, false, right},
		{"single packets", false, true, right},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Getenv(child) != "" {
				for range 8 {
					err := moved(t, c.gso, c.moves, 4<<20)
					switch {
					case errors.Is(err, errOther):
						os.Stdout.WriteString(wrong)
						return
					case err != nil && !c.gso: // else the stack may also stand still for good
						t.Error(err)
						return
					}
					if !c.gso || !c.moves {
						break
					}
				}
				os.Stdout.WriteString(right)
				return
			}
			var said []string
			for range 8 { // a process each time, since the stack may end it
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
				cmd.Env = append(os.Environ(), child+"=1")
				out, err := cmd.CombinedOutput()
				if err == nil && bytes.Contains(out, []byte(c.want)) {
					return
				}
				said = append(said, string(out))
				ended := err != nil && stackEnded(out)
				if c.want == wrong && ended {
					t.Log("the stack ended its process")
					return
				}
				if c.want == right && !ended {
					break
				}
			}
			if c.want == wrong && !slices.ContainsFunc(said, func(out string) bool { return !strings.Contains(out, right) }) {
				t.Log("no other data came this time")
				return
			}
			t.Fatalf("want%sbut\n%s", c.want, strings.Join(said, "\n"))
		})
	}
}

// stackEnded reports whether out is of a process that the stack's own panic ended: the panicking
// goroutine is in the stack's TCP, and no function of this package is on it.
func stackEnded(out []byte) bool {
	_, out, ok := bytes.Cut(out, []byte("\npanic: "))
	if !ok {
		return false
	}
	_, out, _ = bytes.Cut(out, []byte("\ngoroutine "))
	out, _, _ = bytes.Cut(out, []byte("\n\n"))
	return bytes.Contains(out, []byte("\ngvisor.dev/gvisor/pkg/tcpip/transport/tcp.")) &&
		!bytes.Contains(out, []byte("/internal/packet/netstack."))
}

// moved has a client download from a guest, whose place is taken by a copy of it every few
// milliseconds if moves is set.
func moved(t *testing.T, gso, moves bool, n uint64) error {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	cs, link := newStack(client4, client6, false)
	link.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload // nobody has to complete a checksum
	var mu sync.Mutex                                            // of g; not held while a guest sends
	g := newGuest(false, gso)
	g.out = func(f []byte) { injectWhole(link, f) }
	group.Go(func() {
		drain(ctx, link, true, func(f []byte) {
			mu.Lock()
			defer mu.Unlock()
			inject(g.link, f)
		})
	})
	if err := g.Resume(ctx); err != nil {
		return err
	}
	defer func() { g.Pause(ctx) }()
	conn, err := gonet.DialContextTCP(ctx, cs, tcpip.FullAddress{NIC: nic, Addr: guest4, Port: port}, header.IPv4ProtocolNumber)
	if err != nil {
		return err
	}
	defer conn.Close()
	var came atomic.Uint64
	done := make(chan error, 1)
	group.Go(func() { done <- download(conn, bufio.NewReader(conn), n, 7, &came) })
	for last, at := uint64(0), time.Now(); ; {
		select {
		case err := <-done:
			return err
		case <-time.After(time.Duration(1+rand.IntN(20)) * time.Millisecond):
		}
		if now := came.Load(); now != last {
			last, at = now, time.Now()
		} else if time.Since(at) > 4*maxRTO {
			conn.Close()
			return errors.Join(errors.New("it stands still"), <-done)
		}
		if !moves {
			continue
		}
		mu.Lock()
		next, err := g.copy()
		if err == nil {
			g = next
			err = g.Resume(ctx)
		}
		mu.Unlock()
		if err != nil {
			conn.Close()
			return errors.Join(err, <-done)
		}
	}
}

// copy pauses the guest, and returns a paused copy of it.
func (g *guest) copy() (*guest, error) {
	if err := g.Pause(context.Background()); err != nil {
		return nil, err
	}
	saved, err := g.save()
	if err != nil {
		return nil, err
	}
	c := newGuest(false, g.gso)
	c.out = g.out
	return c, c.become(saved)
}
