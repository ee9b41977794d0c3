package lanes

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

var id = [16]byte{7}

// memory is where pages arrive.
type memory struct {
	mu    sync.Mutex
	pages map[string][]byte
	fail  error
}

func (m *memory) place(block string, off uint64, page []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.pages == nil {
		m.pages = map[string][]byte{}
	}
	m.pages[fmt.Sprint(block, off)] = append(make([]byte, 0, ram.PageSize), page...)
	return nil
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pages)
}

// rig is a sender and a receiver with connections between them.
type rig struct {
	s *Sender
	v *Receiver
	memory
}

func newRig(t testing.TB, n int, change func(*SenderConfig, *ReceiverConfig)) *rig {
	t.Helper()
	x := new(rig)
	sc, rc := SenderConfig{ID: id}, ReceiverConfig{ID: id, Place: x.place}
	for range n {
		a, b := net.Pipe()
		sc.Conns, rc.Conns = append(sc.Conns, a), append(rc.Conns, b)
	}
	if change != nil {
		change(&sc, &rc)
	}
	var err error
	if x.s, err = NewSender(sc); err != nil {
		t.Fatal(err)
	}
	x.v = NewReceiver(rc)
	x.s.Start()
	x.v.Start()
	t.Cleanup(func() { x.s.Close(); x.v.Close() })
	return x
}

func pageOf(section, i int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%07d %07d|", section, i)), ram.PageSize/16)
}

// section sends pages of two blocks, and is taken on the other side.
func (x *rig) section(n, pages int) error {
	sent := make(chan error, 1)
	go func() {
		for i := range pages {
			block := "a"
			if i > pages/2 {
				block = "b"
			}
			if err := x.s.SendPage(block, uint64(i)*ram.PageSize, pageOf(n, i)); err != nil {
				sent <- err
				return
			}
		}
		sent <- x.s.Sync()
	}()
	err := x.v.Begin()
	if err == nil {
		err = x.v.Sync()
	}
	return errors.Join(err, <-sent)
}
