package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/require"
)

// certificate returns a certificate that a server has signed itself.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"guest"}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tlsOutcome has the times that a client measures in a mode, and the cost of it.
type tlsOutcome struct {
	p50, all    time.Duration // of a request; of everything
	bytes       int
	checkpoints int
	stats       proxy.PrimaryStats
}

// Real servers of TLS 1.3 on two kernels' stacks, which never agree: each draws its
// own keys. Everything arrives in each mode. Where each difference is a reason for a
// checkpoint there is one for nearly each answer; the adaptive way sets the flow
// apart after a few, and from then on it costs what output commit costs.
//
// A kernel's stack cannot be rolled back, so the secondary's goes on differing
// where that of a real guest would have the primary's keys: a flow that never agrees.
// The figures of the log are ratios to the adaptive way's, and depend on the machine.
func TestFlowsOfTLSInThreeModes(t *testing.T) {
	require.Outside(t, require.NetNS)
	cert := certificate(t)
	requests, size, long := 40, 1000, 1<<20
	if testing.Short() {
		requests, long = 15, 64<<10
	}
	var o [3]tlsOutcome
	for i, y := range []way{
		{"compare", func(p *proxy.PrimaryConfig, _ *proxy.SecondaryConfig) { p.CompareAlways = true }},
		{"continuous", func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { p.Continuous, s.Continuous = true, true }},
		{"adaptive", func(*proxy.PrimaryConfig, *proxy.SecondaryConfig) {}},
	} {
		t.Run(y.name, func(t *testing.T) { o[i] = serveTLS(t, y, cert, requests, size, long) })
	}
	if t.Failed() {
		return
	}
	for i, name := range []string{"compare", "continuous", "adaptive"} {
		t.Logf("%-10s: p50 of a request %.2f of the adaptive way's, all in %.2f of its time, %.2f checkpoints a request, %d of them by difference",
			name, float64(o[i].p50)/float64(o[2].p50), float64(o[i].all)/float64(o[2].all), float64(o[i].checkpoints)/float64(requests+1), o[i].stats.Diverged)
	}
	// Compared always, a flow whose secondary has given up differs by Timeout alone. Of the
	// adaptive way only what the guests have said counts: how often Timeout comes besides
	// depends on the machine.
	always := o[0].stats.Diverged
	d := &o[2].stats.Compare.Diverged
	adaptive := d[compare.ReasonData] + d[compare.ReasonFlags]
	if always < uint64(requests)/2 {
		t.Errorf("compared always, the flow has differed %d times in %d requests", always, requests)
	}
	if a := o[2].stats.Compare.SetApart; a == 0 || adaptive >= always {
		t.Errorf("the adaptive way has set %d flows apart, and they have differed %d times; compared always, %d", a, adaptive, always)
	}
}

// serveTLS lets a client ask a pair for requests of a size, one after the other, and
// then for a long one, while checkpoints are made.
func serveTLS(t *testing.T, y way, cert tls.Certificate, requests, size, long int) (o tlsOutcome) {
	asked := make(chan event.Cause, 1)
	k := newKernelPair(t, tap.Config{}, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
		p.RequestCheckpoint = func(c event.Cause) {
			select {
			case asked <- c:
			default:
			}
		}
		// The secondary's stack, which is not rolled back, gives the connection up at
		// some time. Then nobody says anything until Timeout.
		p.Compare.Timeout, p.Compare.Scan = 30*time.Millisecond, 5*time.Millisecond
		y.change(p, s)
	}, func(_ int, c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
		defer s.Close()
		for {
			var n, seed int
			if _, err := fmt.Fscanf(s, "%d %d\n", &n, &seed); err != nil {
				return
			}
			if _, err := io.CopyN(s, bytesOf(uint64(seed)), int64(n)); err != nil {
				return
			}
		}
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		timer := time.NewTimer(delay)
		for epoch := uint64(1); ; epoch++ {
			var period <-chan time.Time
			if y.name == "continuous" {
				period = timer.C
			}
			select {
			case <-stop:
				return
			case <-asked:
			case <-period:
			}
			time.Sleep(pauseTime + sendTime) // what it takes
			if err := checkpointOf(k.ctx, k.p, k.s, epoch); err != nil {
				t.Error(err)
				return
			}
			o.checkpoints++
			timer.Reset(delay)
		}
	}()
	end := sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
	t.Cleanup(end) // before those of the pair
	begin := time.Now()
	c := tls.Client(k.dial(netns.Guest4), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	ask := func(n, seed int) {
		t.Helper()
		got, want := make([]byte, n), make([]byte, n)
		io.ReadFull(bytesOf(uint64(seed)), want)
		if _, err := fmt.Fprintf(c, "%d %d\n", n, seed); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("the answer %d is not what was sent", seed)
		}
		o.bytes += n
	}
	var took []time.Duration
	for i := range requests {
		at := time.Now()
		ask(size, i)
		took = append(took, time.Since(at))
	}
	ask(long, 99)
	o.all = time.Since(begin)
	if v := c.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("version %#x", v)
	}
	end()
	slices.Sort(took)
	o.p50, o.stats = took[len(took)/2], k.p.Stats()
	t.Logf("%d requests, p50 %v; %d bytes in %v; %d checkpoints", requests, o.p50.Round(time.Microsecond), o.bytes, o.all.Round(time.Millisecond), o.checkpoints)
	return o
}
