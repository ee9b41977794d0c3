// Package program starts another program that keeps an arbiter's record, and talks to it
// over its standard input and output. A host uses it so that it need not link the code
// which reaches the record: a client of etcd (command lockstep-etcd of failover/etcd) or
// of a cloud, or one that is written in another language.
//
//	store, err := program.New(program.Config{
//		Command: []string{"lockstep-etcd", "-endpoints", "a:2379,b:2379,c:2379", "-key", "/lockstep/db1"},
//	})
//	go store.Run(ctx)
//	arbiter := failover.NewStoreArbiter(store)
//
// # The protocol
//
// The host writes requests to the program's standard input and reads answers from its
// standard output, one JSON object a line. Requests overlap; an answer names the request
// that it is for. What the program says to standard error is for people.
//
//	{"id":1,"do":"load"}
//	{"id":1,"record":RECORD}
//
//	{"id":2,"do":"swap","old":RECORD,"next":RECORD}
//	{"id":2,"swapped":true}
//
//	{"id":3,"do":"changed","seen":RECORD}
//	{"id":3,"record":RECORD}
//
//	{"id":4,"do":"load"}
//	{"id":4,"error":"no member of the cluster answers"}
//
//	{"id":5,"do":"forget","of":3}
//
// They are the methods of failover.Store, and mean what its comments say: what swap has
// answered with true is on stable storage, load contains every swap that was answered before
// it, changed is answered when the record differs from seen. After forget nobody waits
// for the answer to another request any more, and forget has none itself. RECORD is what
// failover.Record's Encode makes, and is left out for the zero Record, which there is until
// the first swap. A line has at most MaxLine bytes.
//
// The program ends when its standard input does, and takes no notice of SIGINT and
// SIGTERM, which a terminal or a service manager sends to it as well as to the host: the
// host's last request is that it gives the guest up. If it ends before, or writes a line
// that is no answer, each request that waits fails, which an arbiter takes for "could not
// ask" and not for "no", and the program is started anew. One that hangs, so that nothing
// is heard of it for ten Timeouts while a load or swap waits, is killed, and started anew
// as well.
//
// Serve is the program's side, around any failover.Store.
package program
