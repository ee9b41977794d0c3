package etcd_test

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// A cluster is three members of a real etcd in this process.
type cluster struct {
	t       *testing.T
	members []*embed.Etcd
	clients []string // their client addresses
}

// given are the addresses that the clusters of this process have, which are started beside
// each other.
var given sync.Map

// addresses returns n that are free and not given. etcd listens at them itself, and until
// then nobody else may be given one: on Linux they are of a loopback host of this process's
// own, from which no connection of another one leaves either.
func addresses(t *testing.T, n int) (list []string) {
	t.Helper()
	host := "127.0.0.1"
	if pid := os.Getpid(); runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	}
	for len(list) < n {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Skip(err)
		}
		defer l.Close() // when all of them have been chosen
		if _, taken := given.LoadOrStore(l.Addr().String(), true); !taken {
			list = append(list, l.Addr().String())
		}
	}
	return list
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, members: make([]*embed.Etcd, 3)}
	var initial []string
	var configs []*embed.Config
	free := addresses(t, 2*len(c.members))
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
	for range 1000 {
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
