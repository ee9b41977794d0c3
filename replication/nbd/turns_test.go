package nbd

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Turns are passed on, kept, lost and taken in every order that a disk of changing pace, a client
// that takes its answers late, and the end of the connection bring about: each request is answered
// once, no answer waits for a request that comes later, and a session ends when its client does.
func TestEachRequestIsAnsweredOnceWhateverTurnsDo(t *testing.T) {
	seeds := uint64(8)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { turns(t, seed) })
	}
}

func turns(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	paces := [][]time.Duration{
		{0}, {0, 0, 0, 0, quick / 2}, {0, 0, 0, 0, 0, 0, 2 * keepTurn}, {0, quick, keepTurn, keepTurn - 1, keepTurn + 1}, {unhurried, 0},
		{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, time.Second},
	}
	var mu sync.Mutex // guards what follows
	pace, delays := paces[0], rand.New(rand.NewPCG(seed, 8))
	d := newRAM(1 << 20)
	d.hook = func(string, int64) error {
		mu.Lock()
		wait := pace[delays.IntN(len(pace))]
		mu.Unlock()
		time.Sleep(wait)
		return nil
	}
	srv := NewServer(ServerConfig{MaxRequests: 1 + r.IntN(4), MaxBytes: 64 << 10, MaxRequest: 32 << 10, Timeout: time.Hour})
	e, err := srv.Export(ExportConfig{Disk: d})
	must(t, err)
	client, conn := net.Pipe()
	l := &link{Conn: conn, gone: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		serveRequests(e, &negotiation{srv: srv, raw: l, conn: conn, r: newReader(conn)})
		close(ended)
	}()
	warm(t, client)

	sizes := []uint32{512, 512, 512, 4096, copied, copied + 1}
	due := map[uint64]uint32{} // bytes of each answer; guarded by mu
	var late []time.Duration
	for range 40 {
		late = append(late, time.Duration(max(0, r.IntN(8)-5))*keepTurn*3)
	}
	var reader sync.WaitGroup
	reader.Go(func() { // takes the answers
		for n := 0; ; n++ {
			var head [replyLen]byte
			if readFull(client, head[:]) != nil {
				return
			}
			handle := binary.BigEndian.Uint64(head[8:])
			mu.Lock()
			size, ok := due[handle]
			delete(due, handle)
			mu.Unlock()
			if !ok || binary.BigEndian.Uint32(head[4:]) != 0 {
				t.Errorf("seed %d: an answer to %d, which was answered, or %x", seed, handle, head)
				return
			}
			if readFull(client, make([]byte, size)) != nil {
				return
			}
			time.Sleep(late[n%len(late)])
		}
	})
	handle := uint64(1 << 20)
	for range 60 {
		mu.Lock()
		pace = paces[r.IntN(len(paces))]
		var batch []request
		for range 1 + r.IntN(2*mostTogether) {
			handle++
			q := request{cmd: cmdWrite, handle: handle, off: uint64(r.IntN(64)) * 4096, n: sizes[r.IntN(len(sizes))]}
			due[handle] = 0
			switch r.IntN(8) {
			case 0, 1, 2:
				q.cmd, due[handle] = cmdRead, q.n
			case 3:
				q = request{cmd: cmdFlush, handle: handle}
			}
			batch = append(batch, q)
		}
		mu.Unlock()
		p := heads(batch...)
		cut := r.IntN(len(p)) // a request may come in two parts
		client.Write(p[:cut])
		time.Sleep(time.Duration(r.IntN(3)) * keepTurn / 2)
		client.Write(p[cut:])
		time.Sleep(time.Duration(r.IntN(4)) * keepTurn)
	}
	if seed%3 > 0 { // otherwise it ends in the middle
		time.Sleep(10 * time.Minute)
		mu.Lock()
		if len(due) > 0 {
			t.Errorf("seed %d: %d requests have no answer", seed, len(due))
		}
		mu.Unlock()
	}
	client.Close()
	<-ended
	reader.Wait()
	l.Close()
}
