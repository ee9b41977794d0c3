package netstack

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	runs  = flag.Int("netstack.runs", 0, "how often clients are tried beside whatever happens")
	loses = flag.Int("netstack.loss", 0, "one packet of how many is lost in these runs; 0: none")
	again = flag.Uint64("netstack.seed", 0, "the decisions of a run that is to be made again; 0: others")
)

// A lossy is a link that loses one packet of so many: on the way from the clients, to the
// secondary's guest, and from that to the comparison. What a guest sends to a client is not
// lost, because the stack does not always send it again once it was restored, even where there
// is nothing but one guest and its client.
type lossy struct {
	mu  sync.Mutex
	rnd *rand.Rand
	of  int
}

func (l *lossy) loses() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rnd.IntN(l.of) == 0
}

// Clients come, send and get data on one connection after the other or on several at once,
// and go, while the pair of hosts loses packets, makes checkpoints, loses a host at any moment,
// and is protected anew. No byte is wrong or missing, and no connection is reset.
//
// A stack that was saved within a handshake forgets it, even where nothing is between it and
// its client. So there are no checkpoints while a client is not yet served; hosts die all the
// same. This is for who changes the comparison or the translation, and not for each run.
func TestClientsNoticeNothingWhateverHappens(t *testing.T) {
	const child, tries = "LOCKSTEP_NETSTACK_WHATEVER", 6
	if seed := os.Getenv(child); seed != "" {
		n := uint64(0)
		fmt.Sscan(seed, &n)
		whatever(t, n)
		return
	}
	if *runs == 0 {
		t.Skip("-netstack.runs says how often")
	}
	for range *runs {
		seed := *again
		if seed == 0 {
			seed = rand.Uint64N(1 << 32)
		}
		ended := false
		for n := 0; n < tries && !ended; n++ { // a process each time, since the stack may end it
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", fmt.Sprintf("-netstack.loss=%d", *loses), "-test.run=^"+t.Name()+"$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", child, seed))
			out, err := cmd.CombinedOutput()
			ended = err == nil && bytes.Contains(out, []byte("whatever happened"))
			switch {
			case ended:
				t.Logf("%s", out)
			case !stackEnded(out):
				t.Fatalf("seed %d: %v\n%s", seed, err, out)
			default:
				t.Log("the stack has failed")
			}
		}
		if !ended {
			t.Fatalf("seed %d: the stack fails each time", seed)
		}
	}
}

// A visit is a connection of a client.
type visit struct {
	came atomic.Uint64 // bytes, of either direction
	over atomic.Bool
}

// upload sends n bytes, and waits for the receipt.
func upload(conn net.Conn, r *bufio.Reader, n, seed uint64, progress *atomic.Uint64) error {
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "up %d %d\n", n, seed)
	for i := uint64(0); i < n; {
		b := make([]byte, min(n-i, 8<<10))
		for j := range b {
			b[j] = answer(seed, i+uint64(j))
		}
		conn.SetDeadline(time.Now().Add(patience))
		k, err := conn.Write(b)
		i += uint64(k)
		progress.Add(uint64(k))
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", i, n, err)
		}
	}
	conn.SetDeadline(time.Now().Add(patience))
	for i := range uint64(receiptLen) {
		b, err := r.ReadByte()
		if err != nil {
			return fmt.Errorf("the receipt of %d bytes: %w", n, err)
		}
		if b != answer(seed, i) {
			return fmt.Errorf("%w has come than the %d bytes that were sent", errOther, n)
		}
	}
	progress.Add(receiptLen)
	return nil
}

func whatever(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	v6 := rnd.IntN(2) == 0
	tagged = rnd.IntN(2) == 0
	var loss *lossy
	if *loses > 0 {
		loss = &lossy{rnd: rand.New(rand.NewPCG(seed, 3)), of: *loses}
	}
	hosts := 2 + rnd.IntN(3)
	t.Logf("seed %d: IPv6 %t, tagged %t, %d hosts die", seed, v6, tagged, hosts)

	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	c := &client{lossy: loss}
	c.stack, c.link = newStack(client4, client6, false)
	defer group.Wait()
	defer cancel()
	group.Go(func() { drain(ctx, c.link, true, c.send) })

	first := newGuest(v6, false)
	pw := c.plug()
	c.moveTo(pw)
	x := protect(t, ctx, &group, c, first, pw, nil, nil, v6)
	x.must(x.p.Resume(ctx))

	addr, proto := guest4, header.IPv4ProtocolNumber
	if v6 {
		addr, proto = guest6, header.IPv6ProtocolNumber
	}
	var serving sync.RWMutex // held for reading while a client is not yet served
	var mu sync.Mutex        // of visits
	var visits []*visit
	var clients sync.WaitGroup
	const crowd = 8 // the server's backlog is 16
	var here atomic.Int64
	call := func(seed uint64) {
		here.Add(1)
		rnd := rand.New(rand.NewPCG(seed, 4))
		v := new(visit)
		mu.Lock()
		visits = append(visits, v)
		mu.Unlock()
		clients.Go(func() {
			defer func() { v.over.Store(true); here.Add(-1) }()
			serving.RLock()
			conn, err := gonet.DialContextTCP(ctx, c.stack, tcpip.FullAddress{NIC: nic, Addr: addr, Port: port}, proto)
			if err != nil {
				serving.RUnlock()
				t.Errorf("connection %d: %v", seed, err)
				return
			}
			closes := true
			defer func() {
				if closes {
					conn.Close()
				}
			}()
			r := bufio.NewReader(conn)
			err = download(conn, r, 1, seed, &v.came)
			serving.RUnlock()
			if err != nil {
				t.Errorf("connection %d is not served: %v", seed, err)
				return
			}
			for part := range 1 + rnd.Uint64N(6) {
				do, n := download, 1+rnd.Uint64N(1<<(4+rnd.Uint64N(15)))
				if rnd.IntN(2) == 0 {
					do = upload
				}
				if err := do(conn, r, n, seed+part, &v.came); err != nil {
					t.Errorf("connection %d, part %d: %v", seed, part, err)
					closes = false // the guest's socket is to be looked at
					return
				}
				time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			}
		})
	}
	// Clients come for as long as hosts die.
	arrivals := make(chan struct{})
	var calling sync.WaitGroup
	calls := rand.New(rand.NewPCG(seed, 5))
	calling.Go(func() {
		for {
			select {
			case <-arrivals:
				return
			case <-time.After(time.Duration(calls.IntN(120)) * time.Millisecond):
				if here.Load() < crowd {
					call(calls.Uint64() >> 8)
				}
			}
		}
	})
	// known returns when each connection of those that began before has said something.
	known := func() {
		mu.Lock()
		before := visits
		mu.Unlock()
		for _, v := range before {
			for v.came.Load() == 0 && !v.over.Load() {
				time.Sleep(time.Millisecond)
			}
		}
	}
	checkpoint := func(x *pair) {
		free := serving.TryLock()
		for end := time.Now().Add(4 * time.Second); !free && time.Now().Before(end); free = serving.TryLock() {
			time.Sleep(time.Millisecond)
		}
		if free {
			defer serving.Unlock()
		} else {
			t.Log("a client may have to wait for a checkpoint before it is served")
		}
		x.checkpoint()
		x.made.Add(1)
	}
	checkpoints := 0
	for host := range hosts {
		checkpoint(x)
		rctx, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		every := time.Duration(20+rnd.IntN(150)) * time.Millisecond
		running.Go(func() {
			for rctx.Err() == nil {
				select {
				case <-rctx.Done():
				case <-x.wants:
					checkpoint(x)
				case <-time.After(every):
					checkpoint(x)
				}
			}
		})
		known() // and a checkpoint after that carries what went on through a protection anew
		n := x.made.Load()
		for x.made.Load() < n+2 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(100+rnd.IntN(700)) * time.Millisecond)
		stop()
		running.Wait()
		time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
		x.kill()
		x.takeOver(c)
		checkpoints += x.checkpoints
		if host == hosts-1 {
			break
		}
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		x.must(x.s.Pause(ctx))
		x.must(x.s.Drain(ctx))
		x.send()
		x.sw.Close()
		pw = c.plug()
		c.moveTo(pw)
		x = protect(t, ctx, &group, c, x.sg, pw, nil, x.s, v6)
		x.must(x.p.Resume(ctx))
	}
	close(arrivals)
	calling.Wait()
	clients.Wait()
	if t.Failed() {
		x.must(x.sg.Pause(ctx))
		t.Logf("the last host's guest:\n%s", x.sg.sockets())
	}
	came := uint64(0)
	for _, v := range visits {
		came += v.came.Load()
	}
	t.Logf("whatever happened: %d connections, %d bytes, %d checkpoints, %+v", len(visits), came, checkpoints, x.s.Stats().Rewriter)
}
