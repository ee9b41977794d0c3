package etcd_test

import (
	"log"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/etcd"
)

// The arbiter of a guest whose record is in a cluster of three members. A job of package
// protect takes it as its Config.Arbiter.
func Example() {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"a:2379", "b:2379", "c:2379"}, DialTimeout: time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var arbiter failover.Arbiter = etcd.New(client, "/lockstep/db1", etcd.Config{})
	_ = arbiter
}
