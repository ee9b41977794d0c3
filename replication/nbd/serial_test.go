package nbd

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// A server that does one thing at a time reads nothing while it sends an answer. Whoever waits for a
// long one must read it, and not wait itself for the server to take what others send.
func TestALongAnswerIsReadThoughOthersHaveMoreToSend(t *testing.T) {
	for _, status := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			cfg := ClientConfig{}
			cfg.setDefaults()
			c := newClient(&dialogue{conn: near, r: newReader(near), structured: status, contexts: []clientContext{{ContextAllocation, 7}}},
				Info{Size: 1 << 20, MinBlock: 1, MaxBlock: 1 << 20}, cfg)
			long := make([]byte, copied+1)
			var wg sync.WaitGroup
			wg.Go(func() {
				var err error
				if status {
					err = c.Extents(0, 1<<20, func(int64, uint32) bool { return true })
				} else {
					_, err = c.ReadAt(make([]byte, len(long)), 0)
				}
				if err != nil {
					t.Errorf("block status %v: the long answer: %v", status, err)
				}
			})
			synctest.Wait() // its request is being sent
			wg.Go(func() {
				if _, err := c.WriteAt(long, 1<<19); err != nil {
					t.Errorf("block status %v: the write: %v", status, err)
				}
			})
			synctest.Wait() // that waits for its turn
			take := func(n int) (r request) {
				p := make([]byte, requestLen+n)
				if _, err := io.ReadFull(far, p); err == nil { // otherwise the client says why
					must(t, r.parse(p[:requestLen]))
				}
				return r
			}
			r := take(0)
			answer := append(appendReply(nil, 0, r.handle), long...)
			if status {
				answer = say(nil, chunkDone, chunkStatus, be32(7), bytes.Repeat(be32(1<<20/4096, 0), 4096))
			}
			far.Write(answer)
			far.Write(appendReply(nil, 0, take(len(long)).handle))
			wg.Wait()
			go io.Copy(io.Discard, far)
			c.Close()
			far.Close()
		})
	}
}
