package etcd_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/gocolo/lockstep/internal/socket"
)

// A cluster is three members of a real etcd in this process.
type cluster struct {
	t       *testing.T
	members []*embed.Etcd
	clients []string // their client addresses
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, members: make([]*embed.Etcd, 3)}
	var initial []string
	var configs []*embed.Config
	free := socket.FreeTCP(t, 2*len(c.members)) // etcd listens there itself
	for i := range c.members {
		client, peer := "http://"+free[2*i], "http://"+free[2*i+1]
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir = fmt.Sprint("m", i), t.TempDir()
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls(client), urls(client)
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = urls(peer), urls(peer)
		cfg.TickMs, cfg.ElectionMs = 20, 200
		cfg.UnsafeNoFsync = true // no machine dies here; a slow disk would cause elections
		initial = append(initial, cfg.Name+"="+peer)
		configs = append(configs, cfg)
		c.clients = append(c.clients, strings.TrimPrefix(client, "http://"))
	}
	var group sync.WaitGroup
	for i, cfg := range configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		group.Go(func() {
			m, err := embed.StartEtcd(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			<-m.Server.ReadyNotify()
			c.members[i] = m
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		var group sync.WaitGroup
		for i := range c.members {
			group.Go(func() { c.stop(i) })
		}
		group.Wait()
	})
	return c
}

func urls(s string) []url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return []url.URL{*u}
}

// stop kills a member, without a word to the others.
func (c *cluster) stop(i int) {
	if c.members[i] != nil {
		c.members[i].Server.HardStop()
		c.members[i].Close()
		c.members[i] = nil
	}
}

// partition has a member and the others hear nothing of each other from now on. All of
// them still hear their clients.
func (c *cluster) partition(i int) {
	for j, m := range c.members {
		if j != i {
			c.members[i].Server.CutPeer(m.Server.MemberID())
			m.Server.CutPeer(c.members[i].Server.MemberID())
		}
	}
}

func (c *cluster) leader() int {
	c.t.Helper()
	for range 6000 {
		for i, m := range c.members {
			if m != nil && m.Server.Leader() == m.Server.MemberID() {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("no leader")
	return -1
}

func (c *cluster) client(endpoints ...string) *clientv3.Client {
	c.t.Helper()
	if len(endpoints) == 0 {
		endpoints = c.clients
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: time.Second, Logger: zap.NewNop()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}
