package protect

import (
	"context"
	"errors"
	"go/parser"
	"go/token"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if err := require.Parallel(8); err != nil {
		panic(err)
	}
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

// packageComment returns the comment as it is in the source.
func packageComment(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.ParseFile(token.NewFileSet(), "doc.go", b, parser.ParseComments); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A fabric is the network between the hosts, in memory: each host listens at its
// name, and the way between two hosts can be cut.
type fabric struct {
	mu    sync.Mutex
	at    map[string]*listener
	cut   map[[2]string]bool
	conns map[[2]string][]*colotest.Conn
	flow  func(from, to string) (there, back colotest.Flow) // nil: all arrives
	ways  *ways                                             // not nil: connections are cables
}

func newFabric() *fabric {
	return &fabric{at: map[string]*listener{}, cut: map[[2]string]bool{}, conns: map[[2]string][]*colotest.Conn{}}
}

type listener struct {
	f      *fabric
	name   string
	wrap   func(net.Conn) net.Conn // nil: a connection is as it comes
	in     chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (f *fabric) listen(name string) *listener {
	l := newListener(f, name)
	f.open(l)
	return l
}

func newListener(f *fabric, name string) *listener {
	return &listener{f: f, name: name, in: make(chan net.Conn), closed: make(chan struct{})}
}

// open lets a listener be found.
func (f *fabric) open(l *listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at[l.name] = l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		if l.wrap != nil {
			c = l.wrap(c)
		}
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return addr(l.name) }

type addr string

func (a addr) Network() string { return "fabric" }
func (a addr) String() string  { return string(a) }

var errNoRoute = errors.New("no route to host")

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (f *fabric) dial(ctx context.Context, from, to string) (net.Conn, error) {
	f.mu.Lock()
	l, cut, flow := f.at[to], f.cut[pair(from, to)], f.flow
	f.mu.Unlock()
	if f.ways != nil {
		return f.ways.dial(ctx, from, to, l)
	}
	if l == nil || cut {
		return nil, errNoRoute
	}
	var there, back colotest.Flow
	if flow != nil {
		there, back = flow(from, to)
	}
	a, b := colotest.Pipe(there, back)
	select {
	case l.in <- b:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.cut[pair(from, to)] { // since it was asked
			a.Break()
			b.Break()
			return nil, errNoRoute
		}
		f.conns[pair(from, to)] = append(f.conns[pair(from, to)], a, b)
		return a, nil
	case <-l.closed:
		return nil, errNoRoute
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// part cuts the way between two hosts: what is under way breaks, or, silently, does
// not arrive. join mends it.
func (f *fabric) part(a, b string, silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut[pair(a, b)] = true
	for _, c := range f.conns[pair(a, b)] {
		if silent {
			c.Stall()
		} else {
			c.Break()
		}
	}
	delete(f.conns, pair(a, b))
}

// hush lets nothing arrive any more of what two hosts say over the connections that they have.
func (f *fabric) hush(a, b string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns[pair(a, b)] {
		c.Stall()
	}
}

func (f *fabric) join(a, b string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cut, pair(a, b))
}
