package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/failover"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// DefaultTimeout bounds one request if a configuration does not say.
const DefaultTimeout = 2 * time.Second

// Config says how a Store asks the cluster.
type Config struct {
	// Timeout bounds one request to one member; what was not answered is asked
	// again by whoever uses the Store, of another member perhaps. 0:
	// DefaultTimeout. It should be below the term.
	Timeout time.Duration
}

// Store is the failover.Store in a key of an etcd cluster. Its methods may be
// called from any goroutine. Several stores may share a client, which the caller
// keeps and closes.
type Store struct {
	client *clientv3.Client
	key    string
	cfg    Config
}

var _ failover.Store = (*Store)(nil)

// New returns the arbiter of the guest whose record is at key.
func New(client *clientv3.Client, key string, cfg Config) *failover.StoreArbiter {
	return failover.NewStoreArbiter(Open(client, key, cfg))
}

// Open returns the store at key. Nothing is asked yet.
func Open(client *clientv3.Client, key string, cfg Config) *Store {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Store{client, key, cfg}
}

// Load implements failover.Store.
func (s *Store) Load(ctx context.Context) (failover.Record, error) {
	r, _, err := s.load(ctx)
	return r, err
}

func (s *Store) load(ctx context.Context) (failover.Record, int64, error) {
	ask, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	answer, err := s.client.Get(ask, s.key)
	if err != nil {
		return failover.Record{}, 0, s.failed(ctx, "get", err)
	}
	if len(answer.Kvs) == 0 {
		return failover.Record{}, answer.Header.Revision, nil
	}
	r, err := failover.DecodeRecord(answer.Kvs[0].Value)
	if err != nil {
		return failover.Record{}, 0, fmt.Errorf("etcd: key %s: %w", s.key, err)
	}
	return r, answer.Header.Revision, nil
}

// Swap implements failover.Store. A record is in place if the key's value decodes to
// it, however it is written: a person may have put it there.
func (s *Store) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	is := clientv3.Compare(clientv3.Value(s.key), "=", string(old.Encode()))
	if old == (failover.Record{}) { // the key is not there, unless a person has put that there
		is = clientv3.Compare(clientv3.CreateRevision(s.key), "=", 0)
	}
	answer, err := s.put(ctx, is, next)
	if err != nil || answer.Succeeded {
		return err == nil, err
	}
	found := answer.Responses[0].GetResponseRange().Kvs
	if len(found) == 0 {
		return false, nil
	}
	if r, err := failover.DecodeRecord(found[0].Value); err != nil || r != old {
		return false, nil // whoever loads it next hears what is wrong with it
	}
	answer, err = s.put(ctx, clientv3.Compare(clientv3.ModRevision(s.key), "=", found[0].ModRevision), next)
	return err == nil && answer.Succeeded, err
}

// put writes the record if the comparison holds, and reads the key if not, in one step.
func (s *Store) put(ctx context.Context, is clientv3.Cmp, next failover.Record) (*clientv3.TxnResponse, error) {
	ask, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	answer, err := s.client.Txn(ask).If(is).
		Then(clientv3.OpPut(s.key, string(next.Encode()))).Else(clientv3.OpGet(s.key)).Commit()
	if err != nil {
		return nil, s.failed(ctx, "swap", err)
	}
	return answer, nil
}

// Changed implements failover.Store.
func (s *Store) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	for {
		r, revision, err := s.load(ctx)
		if err != nil || r != seen {
			return r, err
		}
		if err := s.watch(ctx, revision+1); err != nil {
			return failover.Record{}, err
		}
	}
}

// watch returns when the key is written in that revision or a later one. A member
// that has lost its leader ends it with an error.
func (s *Store) watch(ctx context.Context, revision int64) error {
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for answer := range s.client.Watch(watching, s.key, clientv3.WithRev(revision)) {
		switch {
		case answer.CompactRevision != 0:
			return nil // the changes in between are gone: read the record
		case answer.Err() != nil:
			return s.failed(ctx, "watch", answer.Err())
		case len(answer.Events) > 0:
			return nil
		}
	}
	return s.failed(ctx, "watch", errors.New("ended"))
}

// failed says what was asked for, and the caller's own reason if it gave up.
func (s *Store) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("etcd: %s %s: %w", what, s.key, err)
}
