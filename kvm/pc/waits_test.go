//go:build linux && amd64

package pc

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/device"
	"github.com/gocolo/lockstep/vmstate"
)

// blank is storage of zeroes.
type blank struct{ begun, held chan struct{} } // Sync sends to begun, and waits for held, unless they are nil

func (blank) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (blank) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (blank) Size() int64                            { return 1 << 20 }

func (b blank) Sync() error {
	if b.held != nil {
		b.begun <- struct{}{}
		<-b.held
	}
	return nil
}

// idle is a Machine whose guest waits for interrupts, and has none. The test is the driver of its
// devices.
type idle struct {
	*Machine
	t    testing.TB
	stop context.CancelFunc
	done chan error
}

func newIdle(t testing.TB, d Devices) *idle {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := Create(Config{Memory: 1 << 20, Devices: d})
	if err != nil {
		t.Fatal(err)
	}
	i := &idle{Machine: m, t: t}
	t.Cleanup(func() {
		i.halt()
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	const at = 0x1000
	copy(m.memory[at:], []byte{0xf4, 0xeb, 0xfd}) // hlt, and again
	v := m.vm.VCPUs()[0]
	s, err1 := v.Sregs()
	r, err2 := v.Regs()
	s.CS.Base, s.CS.Selector, r.RIP, r.RFLAGS = 0, 0, at, 2
	i.must(errors.Join(err1, err2, v.SetSregs(s), v.SetRegs(r)))
	return i
}

func (i *idle) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

// start calls Run until halt, which returns its error.
func (i *idle) start() {
	ctx, stop := context.WithCancel(context.Background())
	i.stop, i.done = stop, make(chan error, 1)
	go func() { i.done <- i.Run(ctx) }()
}

func (i *idle) halt() (err error) {
	if i.stop != nil {
		i.stop()
		err = <-i.done
		i.stop = nil
	}
	return err
}

// inRun returns when the vCPU runs.
func (i *idle) inRun() {
	i.t.Helper()
	i.eventually("the vCPU runs", func() bool {
		_, err := i.vm.VCPUs()[0].Regs()
		return errors.Is(err, kvm.ErrRunning)
	})
}

// eventually fails if something does not come about for so long that it never will.
func (i *idle) eventually(what string, is func() bool) {
	i.t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			i.t.Fatal("never: ", what)
		}
	}
}

// queue is a driver's end of a queue, which always makes the same chain available.
type queue struct {
	i    *idle
	base int
	n    uint32
}

// Registers of a virtio device, and places in a queue.
const (
	pfn, selected, notify = 8, 14, 16
	available             = 16 * device.QueueSize
	used                  = available + kvm.PageSize
	data                  = 0x60000
)

// queue sets up a queue whose chain has parts of so many bytes from data on, of which the device
// writes the last, unless that has none.
func (i *idle) queue(d device.Ports, index uint16, base int, parts ...uint32) *queue {
	le := binary.LittleEndian
	i.must(errors.Join(d.Out(selected, le.AppendUint16(nil, index)), d.Out(pfn, le.AppendUint32(nil, uint32(base)/kvm.PageSize))))
	at := uint64(data + base)
	if parts[len(parts)-1] == 0 {
		parts = parts[:len(parts)-1]
	}
	for k, n := range parts {
		p := i.memory[base+16*k:]
		le.PutUint64(p, at)
		le.PutUint32(p[8:], n)
		flags := uint16(1) // there is a next
		if k == len(parts)-1 {
			flags = 0
		}
		le.PutUint16(p[12:], flags)
		le.PutUint16(p[14:], uint16(k+1))
		at += uint64(n)
	}
	return &queue{i: i, base: base}
}

func (q *queue) writes(k int) *queue { q.i.memory[q.base+16*k+12] |= 2; return q }

func (q *queue) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&q.i.memory[q.base+at])) }

// offer makes the chain available.
func (q *queue) offer() {
	q.n++
	atomic.StoreUint32(q.word(available), q.n<<16)
}

func (q *queue) served() bool { return atomic.LoadUint32(q.word(used))>>16 == q.n }

// What waits in the devices, of which nobody tells them any more, is served when a pause ends, as
// after a state was loaded, and by the next Run.
func TestWhatWaitsIsServedWhenTheMachineGoesOn(t *testing.T) {
	background := context.Background()
	for name, c := range map[string]struct{ before, after func(i *idle) }{
		"a pause": {
			func(i *idle) { i.must(i.Pause(background)) },
			func(i *idle) { i.must(i.Resume(background)) },
		},
		"the next Run": {
			func(i *idle) {
				if err := i.halt(); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			},
			(*idle).start,
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIdle(t, Devices{
				Disks:  []Disk{{Storage: blank{}}},
				NICs:   []NIC{{Uplink: drop{}}},
				Random: Random{Source: strings.NewReader(strings.Repeat("x", 1000))},
			})
			var level atomic.Bool
			i.serial = device.NewSerial(i.console, level.Store)
			disk, card := i.disks[0], i.cards[0]
			const sync, receiveInterrupt = 4, 1
			requests := map[string]*queue{
				"disk":       i.queue(disk, 0, 0x10000, 16, 1).writes(1),
				"card":       i.queue(card.net, 1, 0x20000, 10, 60),
				"randomness": i.queue(i.rng, 0, 0x30000, 8).writes(0),
			}
			frames := i.queue(card.net, 0, 0x40000, 10, 1514).writes(0).writes(1)
			i.memory[data+0x10000] = sync
			i.must(i.serial.Out(1, []byte{receiveInterrupt}))
			i.start()
			i.must(i.Resume(background))
			for what, d := range map[string]device.Ports{"disk": disk, "card": card.net, "randomness": i.rng} {
				requests[what].offer()
				q := []byte{0, 0}
				if what == "card" {
					q[0] = 1
				}
				i.must(d.Out(notify, q))
				i.eventually("the first of "+what, requests[what].served)
			}
			c.before(i)
			for _, q := range requests {
				q.offer()
			}
			frames.offer()
			i.must(card.ReceivePacket(make([]byte, 60)))
			if _, err := i.Input([]byte("x")); err != nil {
				t.Error(err)
			}
			if i.paused.Load() && (level.Load() || frames.served()) {
				t.Error("a device is not paused")
			}
			c.after(i)
			if !level.Load() || !frames.served() {
				t.Errorf("what came from outside has arrived: %v, %v", level.Load(), frames.served())
			}
			for what, q := range requests {
				i.eventually("the second of "+what, q.served)
			}
		})
	}
}

// A pause that a device has not let happen leaves the guest running, the vCPUs too.
func TestAPauseThatGivesUpLeavesTheGuestRunning(t *testing.T) {
	background := context.Background()
	i := newIdle(t, Devices{})
	i.start()
	i.must(i.Resume(background))
	i.inRun()
	if !i.gate.Enter(background) {
		t.Fatal("a guest that runs keeps its devices out")
	}
	ctx, cancel := context.WithCancel(background)
	stopped := make(chan error)
	go func() { stopped <- i.Pause(ctx) }()
	for i.gate.TryEnter() { // until Pause has closed it
		i.gate.Leave()
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Error("Pause:", err)
	}
	i.inRun()
	i.gate.Leave()
}

// A disk may take seconds to make everything stable. The guest is paused and saved meanwhile; it goes on, and is told
// by its disk once that has answered.
func TestAPauseDoesNotWaitForADiskToBeFlushed(t *testing.T) {
	storage := blank{begun: make(chan struct{}), held: make(chan struct{})}
	i := newIdle(t, Devices{Disks: []Disk{{Storage: storage}}})
	answer := sync.OnceFunc(func() { close(storage.held) })
	t.Cleanup(answer)
	reg := &vmstate.Registry{}
	i.must(i.Register(reg))
	q := i.queue(i.disks[0], 0, 0x10000, 16, 1).writes(1)
	i.memory[data+0x10000] = 4 // flush
	i.start()
	i.must(i.Resume(context.Background()))
	i.inRun()
	q.offer()
	i.must(i.disks[0].Out(notify, []byte{0, 0}))
	<-storage.begun
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	i.must(i.Pause(ctx))
	i.must(reg.CaptureDevices())
	if q.served() {
		t.Error("the guest is told before its disk has answered")
	}
	answer()
	i.must(i.Resume(ctx))
	i.eventually("the flush is answered", q.served)
	i.halt()
}

// The guest would wait for ever for an interrupt whose line cannot be set: Run ends with the reason,
// and so does each Run after it.
func TestALineThatCannotBeSetEndsTheRun(t *testing.T) {
	broken, later := errors.New("no line"), errors.New("no other line")
	i := newIdle(t, Devices{})
	i.start()
	i.must(i.Resume(context.Background()))
	i.inRun()
	i.abort(broken)
	i.abort(later)
	if err := <-i.done; !errors.Is(err, broken) {
		t.Error("Run:", err)
	}
	i.stop = nil
	ended, stop := context.WithCancel(context.Background())
	stop()
	if err := i.Run(ended); !errors.Is(err, broken) {
		t.Error("the next Run:", err)
	}
}

// Nothing that Run has started goes on behind it: it returns when the disk does.
func TestARunEndsWithItsDevices(t *testing.T) {
	storage := blank{begun: make(chan struct{}), held: make(chan struct{})}
	i := newIdle(t, Devices{Disks: []Disk{{Storage: storage}}})
	disk := i.disks[0]
	q := i.queue(disk, 0, 0x10000, 16, 1).writes(1)
	i.memory[data+0x10000] = 4 // flush
	i.start()
	i.must(i.Resume(context.Background()))
	i.inRun()
	q.offer()
	i.must(disk.Out(notify, []byte{0, 0}))
	<-storage.begun
	i.stop()
	i.eventually("the vCPU has ended", func() bool {
		_, err := i.vm.VCPUs()[0].Regs()
		return err == nil
	})
	time.Sleep(10 * time.Millisecond) // in which a Run that does not wait returns
	select {
	case err := <-i.done:
		t.Error("Run has returned before the disk:", err)
		i.stop = nil
	default:
	}
	close(storage.held)
	i.halt()
	i.eventually("the request that was begun is answered", q.served)
}

// A host that has closed its Machine has its devices let go of the guest's memory, though the
// guest ran.
func TestTheDevicesOfAClosedMachineAreShutOut(t *testing.T) {
	i := newIdle(t, Devices{})
	i.must(errors.Join(i.Resume(context.Background()), i.Close()))
	if i.gate.TryEnter() {
		t.Error("they work on")
	}
}

// Each access of a device to memory that is not there yet waits for it, until all of it is there.
func TestADeviceAsksForTheMemoryThatIsNotThere(t *testing.T) {
	i := newIdle(t, Devices{Random: Random{Source: strings.NewReader("12345678")}})
	asked := map[uint64]bool{}
	i.EnsureMemory(func(block string, offset, n uint64) error {
		if block != kvm.RAMBlock || n == 0 {
			t.Errorf("%d bytes of %q", n, block)
		}
		asked[offset/kvm.PageSize] = true
		return nil
	})
	q := i.queue(i.rng, 0, 0x30000, 8).writes(0)
	q.offer()
	i.start()
	i.must(i.Resume(context.Background()))
	i.eventually("the request", q.served)
	i.must(i.Pause(context.Background()))
	for _, page := range []uint64{0x30, 0x31, 0x32, (data + 0x30000) / kvm.PageSize} {
		if !asked[page] {
			t.Errorf("nobody has asked for page %#x", page)
		}
	}
	clear(asked)
	i.EnsureMemory(nil)
	i.must(i.Resume(context.Background()))
	i.must(i.Pause(context.Background()))
	if len(asked) > 0 {
		t.Error("still asked for")
	}
}

// The host answers for its ports to one vCPU at a time.
func TestOneVCPUAtATimeReachesThePortsOfTheHost(t *testing.T) {
	b := newTestBus()
	var inside atomic.Int32
	b.other = func(uint16, bool, []byte) (bool, error) {
		if inside.Add(1) != 1 {
			t.Error("two are inside")
		}
		runtime.Gosched()
		inside.Add(-1)
		return true, nil
	}
	var vcpus sync.WaitGroup
	for range 4 {
		vcpus.Go(func() {
			for range 500 {
				_ = b.io(&kvm.IO{Port: 0x300, Size: 1, Count: 1, Data: []byte{0}})
			}
		})
	}
	vcpus.Wait()
}
