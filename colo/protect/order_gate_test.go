package protect

import (
	"bytes"
	"context"
	"testing"
	"time"
)

// Without an arbiter an operator's order is the word that this host goes on, also where the link is lost
// before the order has ended the session: the gate stays open.
func TestAnOrderThatIsGrantedBeforeTheLinkIsLostLeavesTheGateOpen(t *testing.T) {
	for name, order := range map[string]struct {
		do    func(*Job, context.Context) error
		state State
	}{
		"pause":  {func(j *Job, ctx context.Context) error { return j.Pause(ctx, "") }, Paused},
		"cancel": {(*Job).Cancel, Cancelled},
		"save, where there is no room": {func(j *Job, ctx context.Context) error {
			if err := j.Save(ctx, &sizedBuffer{b: bytes.Repeat([]byte{0}, 5), most: 5}); err == nil {
				t.Error("it is saved where there is no room")
			}
			return nil
		}, Alone},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.manual = true
			a, b := w.protected()
			a.job.holding <- struct{}{} // it is about to record what it was granted
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- order.do(a.job, ctx) }() // awaited below
			w.until(func() bool { return a.job.keeper.Generation() > 1 })
			w.f.part("a", "b", false)
			a.is(Asking)
			<-a.job.holding
			if err := <-done; err != nil || ctx.Err() != nil {
				t.Errorf("%s: %v, %v", name, err, ctx.Err())
			}
			time.Sleep(time.Second)
			if s := a.job.State(); s != order.state || !a.job.Gate().Open() || a.guest.Paused() {
				t.Errorf("%s: it is %v, the gate is open: %v, the guest stands still: %v", name, s, a.job.Gate().Open(), a.guest.Paused())
			}
			a.halt()
			b.halt()
		})
	}
}
