package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/etcd"
	"github.com/gocolo/lockstep/failover/failovertest"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fakeCluster is one key of a cluster, in memory. Of its clients it checks that they read what a majority knows,
// and that they ask for a leader when they watch.
type fakeCluster struct {
	mu       sync.Mutex
	tb       testing.TB
	value    []byte // nil: there is no key
	created  int64
	modified int64
	revision int64
	written  chan struct{}                                // closed and replaced with each change
	hangs    bool                                         // nothing is answered
	fails    error                                        // by which all is answered
	watch    func(ctx context.Context) clientv3.WatchChan // instead of watching
	begins   func()                                       // called when a watch begins, before it looks
}

func newFakeCluster(tb testing.TB) *fakeCluster {
	return &fakeCluster{tb: tb, revision: 1, written: make(chan struct{})}
}

// client returns a client of the cluster.
func (c *fakeCluster) client() *clientv3.Client {
	client := clientv3.NewCtxClient(context.Background())
	client.KV, client.Watcher = fakeKV{c: c}, fakeWatcher{c: c}
	return client
}

// put writes the key, or deletes it: nil.
func (c *fakeCluster) put(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(value)
}

func (c *fakeCluster) set(value []byte) {
	if c.revision++; c.value == nil {
		c.created = c.revision
	}
	if c.value, c.modified = value, c.revision; value == nil {
		c.created, c.modified = 0, 0
	}
	close(c.written)
	c.written = make(chan struct{})
}

// found is the key as it is read.
func (c *fakeCluster) found() (kvs []*mvccpb.KeyValue) {
	if c.value != nil {
		kvs = append(kvs, &mvccpb.KeyValue{Value: c.value, CreateRevision: c.created, ModRevision: c.modified})
	}
	return kvs
}

// answers waits until the cluster answers.
func (c *fakeCluster) answers(ctx context.Context) error {
	c.mu.Lock()
	hangs, fails := c.hangs, c.fails
	c.mu.Unlock()
	if hangs {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fails
}

type fakeKV struct {
	clientv3.KV
	c *fakeCluster
}

func (k fakeKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if clientv3.OpGet(key, opts...).IsSerializable() {
		k.c.tb.Error("what one member knows is read, and not what a majority does")
	}
	if err := k.c.answers(ctx); err != nil {
		return nil, err
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: k.c.revision}, Kvs: k.c.found()}, nil
}

func (k fakeKV) Txn(ctx context.Context) clientv3.Txn { return &fakeTxn{c: k.c, ctx: ctx} }

type fakeTxn struct {
	c      *fakeCluster
	ctx    context.Context
	is     []clientv3.Cmp
	does   []clientv3.Op
	fallen []clientv3.Op
}

func (x *fakeTxn) If(is ...clientv3.Cmp) clientv3.Txn     { x.is = is; return x }
func (x *fakeTxn) Then(does ...clientv3.Op) clientv3.Txn  { x.does = does; return x }
func (x *fakeTxn) Else(falls ...clientv3.Op) clientv3.Txn { x.fallen = falls; return x }

func (x *fakeTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := x.c.answers(x.ctx); err != nil {
		return nil, err
	}
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	holds := len(x.is) == 1
	for _, is := range x.is {
		p := is.GetCompare()
		switch p.Target {
		case etcdserverpb.Compare_VALUE:
			holds = x.c.value != nil && string(p.GetValue()) == string(x.c.value)
		case etcdserverpb.Compare_CREATE:
			holds = p.GetCreateRevision() == x.c.created
		case etcdserverpb.Compare_MOD:
			holds = p.GetModRevision() == x.c.modified
		default:
			x.c.tb.Errorf("compared: %v", p.Target)
		}
		holds = holds && p.Result == etcdserverpb.Compare_EQUAL
	}
	if holds {
		x.c.set(append([]byte{}, x.does[0].ValueBytes()...))
		return &clientv3.TxnResponse{Succeeded: true}, nil
	}
	get := &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: &etcdserverpb.RangeResponse{Kvs: x.c.found()}}
	return &clientv3.TxnResponse{Responses: []*etcdserverpb.ResponseOp{{Response: get}}}, nil
}

type fakeWatcher struct {
	clientv3.Watcher
	c *fakeCluster
}

func (w fakeWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	from := clientv3.OpGet(key, opts...).Rev()
	w.c.mu.Lock()
	instead, begins := w.c.watch, w.c.begins
	w.c.watch, w.c.begins = nil, nil
	w.c.mu.Unlock()
	if begins != nil {
		begins()
	}
	if instead != nil {
		return instead(ctx)
	}
	answers := make(chan clientv3.WatchResponse, 1)
	go func() {
		defer close(answers)
		for {
			w.c.mu.Lock()
			last, written := w.c.revision, w.c.written
			w.c.mu.Unlock()
			if last >= from {
				answers <- clientv3.WatchResponse{Events: []*clientv3.Event{{}}}
				return
			}
			select {
			case <-written:
			case <-ctx.Done():
				return
			}
		}
	}()
	return answers
}

func TestAStoreOverTheTransactionsOfACluster(t *testing.T) {
	failovertest.TestStore(t, func(t *testing.T) failovertest.Stores {
		c := newFakeCluster(t)
		return failovertest.Stores{A: etcd.Open(c.client(), "k", etcd.Config{}), B: etcd.Open(c.client(), "k", etcd.Config{})}
	})
}

func TestAnArbiterOverTheTransactionsOfACluster(t *testing.T) {
	failovertest.TestArbiterInBubble(t, time.Second, func(t *testing.T) failovertest.Two {
		c := newFakeCluster(t)
		return failovertest.Two{A: etcd.New(c.client(), "k", etcd.Config{}), B: etcd.New(c.client(), "k", etcd.Config{})}
	})
}

// A request has its Timeout, and the caller's own reason is told where that one gives up first.
func TestARequestThatIsNotAnsweredIsGivenUp(t *testing.T) {
	errMine := errors.New("the host has other things to do")
	for what, ask := range map[string]func(*etcd.Store, context.Context) error{
		"get": func(s *etcd.Store, ctx context.Context) error { _, err := s.Load(ctx); return err },
		"swap": func(s *etcd.Store, ctx context.Context) error {
			_, err := s.Swap(ctx, failover.Record{}, failover.Record{Generation: 1, Writes: 1})
			return err
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newFakeCluster(t)
			c.hangs = true
			for timeout, config := range map[time.Duration]etcd.Config{etcd.DefaultTimeout: {}, time.Minute: {Timeout: time.Minute}} {
				s, begun := etcd.Open(c.client(), "k", config), time.Now()
				err := ask(s, t.Context())
				if d := time.Since(begun); d != timeout || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "etcd: "+what+" k: ") {
					t.Errorf("%s is given up after %v, want %v: %v", what, d, timeout, err)
				}
				ctx, cancel := context.WithTimeoutCause(t.Context(), timeout/2, errMine)
				if err := ask(s, ctx); err != errMine {
					t.Errorf("%s whose caller gives up: %v", what, err)
				}
				cancel()
			}
		})
	}
}

// What is written between the look at the record and the watch is not missed, nor where its changes have
// been compacted. A watch that ends is an error, and so is one by a member that has lost its leader.
func TestAWatchMissesNothingAndEndsWithAnError(t *testing.T) {
	next := failover.Record{Generation: 1, Holder: "a", Token: "a", Writes: 1}
	answers := func(all ...clientv3.WatchResponse) func(context.Context) clientv3.WatchChan {
		return func(context.Context) clientv3.WatchChan {
			c := make(chan clientv3.WatchResponse, len(all))
			for _, a := range all {
				c <- a
			}
			close(c)
			return c
		}
	}
	for name, k := range map[string]struct {
		watch  func(context.Context) clientv3.WatchChan
		writes bool // when the watch begins
		fails  string
	}{
		"a change before it begins":      {nil, true, ""},
		"one that was compacted":         {answers(clientv3.WatchResponse{Canceled: true, CompactRevision: 9}), true, ""},
		"a word of progress, and an end": {answers(clientv3.WatchResponse{}), false, "etcd: watch k: ended"},
		"no leader":                      {answers(clientv3.WatchResponse{Canceled: true}), false, "etcd: watch k: etcdserver: "},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newFakeCluster(t)
			c.watch = k.watch
			if k.writes {
				c.begins = func() { c.put(next.Encode()) }
			}
			r, err := etcd.Open(c.client(), "k", etcd.Config{}).Changed(t.Context(), failover.Record{})
			if k.fails == "" && (err != nil || r != next) || k.fails != "" && (err == nil || !strings.HasPrefix(err.Error(), k.fails)) {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		})
	}
}

// A watch asks for a member that knows a leader: another one would wait for ever.
func TestAWatchWantsALeader(t *testing.T) {
	c := newFakeCluster(t)
	asked := ""
	c.watch = func(ctx context.Context) clientv3.WatchChan {
		asked = fmt.Sprint(ctx)
		ended := make(chan clientv3.WatchResponse)
		close(ended)
		return ended
	}
	etcd.Open(c.client(), "k", etcd.Config{}).Changed(t.Context(), failover.Record{})
	if want := fmt.Sprint(clientv3.WithRequireLeader(t.Context())); asked == "" || !strings.Contains(asked, want[strings.LastIndex(want, "metadata"):]) {
		t.Errorf("asked with %s, want %s", asked, want)
	}
}

// A record that a person has written in another spacing is compared by the revision of the key, so that what is
// written meanwhile is not overwritten. A deleted key is no record.
func TestARecordInAnotherSpacingIsComparedByItsRevision(t *testing.T) {
	c := newFakeCluster(t)
	s := etcd.Open(c.client(), "k", etcd.Config{})
	by := failover.Record{Generation: 7, Writes: 7}
	c.put([]byte("{ \"writes\": 7,\r\n \"format\": \"lockstep-arbiter-1\", \"generation\": 7 }\n"))
	next := failover.Record{Generation: 8, Holder: "a", Token: "a", Writes: 8}
	if swapped, err := s.Swap(t.Context(), failover.Record{Generation: 6, Writes: 7}, next); err != nil || swapped {
		t.Errorf("from another record: %v, %v", swapped, err)
	}
	if swapped, err := s.Swap(t.Context(), by, next); err != nil || !swapped {
		t.Errorf("%v, %v", swapped, err)
	}
	c.put(nil)
	if r, err := s.Load(t.Context()); err != nil || r != (failover.Record{}) {
		t.Errorf("a deleted key: %+v, %v", r, err)
	}
	if swapped, err := s.Swap(t.Context(), next, by); err != nil || swapped {
		t.Errorf("over a deleted key: %v, %v", swapped, err)
	}
	c.put(failover.Record{}.Encode()) // which a person has put there
	if swapped, err := s.Swap(t.Context(), failover.Record{}, next); err != nil || !swapped {
		t.Errorf("a key with the record of nothing: %v, %v", swapped, err)
	}
	c.put([]byte("{}"))
	if _, err := s.Load(t.Context()); !errors.Is(err, failover.ErrRecord) || !strings.Contains(err.Error(), "etcd: key k: ") {
		t.Errorf("a key that is no record: %v", err)
	}
	if swapped, err := s.Swap(t.Context(), next, by); err != nil || swapped {
		t.Errorf("over a key that is no record: %v, %v", swapped, err)
	}
}
