package filter

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// waiting is a network that asks, when it has waited, whether the packet that it
// was given still counts.
type waiting struct {
	b    *Buffer
	open chan struct{}
	out  []string
}

func (w *waiting) WritePacket(p []byte) error {
	<-w.open
	if !w.b.Void() {
		w.out = append(w.out, string(p))
	}
	return nil
}

func TestAPacketThatWaitedInItsWriteIsVoidAfterACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := errors.New("over")
		ctx, end := context.WithCancelCause(t.Context())
		b := NewBuffer(BufferConfig{})
		w := &waiting{b: b, open: make(chan struct{})}
		ended := make(chan error)
		go func() { ended <- b.Run(ctx, w) }()
		b.WritePacket([]byte("before"))
		b.WritePacket([]byte("behind it"))
		synctest.Wait()
		if b.Void() {
			t.Error("void before the commit")
		}
		if err := b.Commit(0); err != nil {
			t.Fatal(err)
		}
		b.WritePacket([]byte("after"))
		if err := b.Failover(); err != nil {
			t.Fatal(err)
		}
		close(w.open)
		synctest.Wait()
		end(over)
		if err := <-ended; err != over {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"after"}, w.out); d != "" {
			t.Errorf("left (-want +got):\n%s", d)
		}
	})
}
