package colo_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// parallel is a pair with channels for the memory of its checkpoints.
type parallel struct {
	*pair
	ps, ss []*colotest.Conn // their ends at the primary and at the secondary
	said   []string         // to the primary
}

// newParallel makes one whose channels are subject to flows. Both guests make progress
// before every step.
func newParallel(t testing.TB, o options, method multifd.Method, flows ...colotest.Flow) *parallel {
	t.Helper()
	x := new(parallel)
	var p, s colo.Channels
	for _, f := range flows {
		a, b := colotest.Pipe(f, colotest.Flow{})
		x.ps, x.ss = append(x.ps, a), append(x.ss, b)
		p.Conns, s.Conns = append(p.Conns, a), append(s.Conns, b)
	}
	slices.Reverse(s.Conns) // in any order
	p.ID, s.ID = [16]byte{3}, [16]byte{3}
	p.Method = method
	primary, secondary := o.primary, o.secondary
	o.primary = func(c *colo.PrimaryConfig) {
		c.RAM, c.Channels = x.p.saver, p
		c.Step = func(string, uint64) { x.p.step(1) }
		c.Trace = func(dir string, m colo.Message, _ uint64) {
			if dir == "<" {
				x.said = append(x.said, m.String())
			}
		}
		if primary != nil {
			primary(c)
		}
	}
	o.secondary = func(c *colo.SecondaryConfig) {
		c.Channels = s
		c.Step = func(string, uint64) { x.s.step(1) }
		if secondary != nil {
			secondary(c)
		}
	}
	x.pair = newPairIn(t, o, func(made *pair) { x.pair = made })
	return x
}

// dies has the host of one side die with the link.
func (x *pair) dies(m event.Mode) {
	x.witness.Deny = func(c colo.Claim) error {
		if c.Mode == m {
			return errors.New("dead")
		}
		return nil
	}
}

func TestACheckpointsMemoryGoesOverChannels(t *testing.T) {
	for _, method := range []multifd.Method{multifd.None, multifd.Zlib} {
		for _, m := range manners {
			t.Run(fmt.Sprint(method, " ", m.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					// Less than a page: nothing leaves that is not read.
					narrow := colotest.Flow{Capacity: 1 << 10}
					x := newParallel(t, options{primary: m.apply, guest: m.guest}, method, narrow, narrow)
					defer x.close()
					var info [2]colo.Info
					defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
						if c.Epoch == checkpoints {
							info = [2]colo.Info{x.primary.Info(), x.secondary.Info()}
							x.pc.Break()
						}
					})()
					x.start(t.Context())
					x.wait()
					x.wantWhole(t)
					if info[0].Channels != 2 || info[1].Channels != 2 {
						t.Errorf("the primary uses %d channels, the secondary %d", info[0].Channels, info[1].Channels)
					}
					said := []string{"hello", "use-channels", "checkpoint-ready"}
					if m.name == "early" {
						said = slices.Insert(said, 2, "take-early")
					}
					if got := x.said[:len(said)]; !slices.Equal(got, said) {
						t.Errorf("the secondary said %q", got)
					}
					var sent int64
					for _, c := range x.ps {
						sent += c.Sent().Bytes
					}
					if pages := info[0].Pages; pages == 0 || method == multifd.None && sent < int64(pages)*ram.PageSize {
						t.Errorf("%d bytes went over the channels for %d pages", sent, pages)
					}
					if info[0].Bytes < uint64(sent) {
						t.Errorf("the checkpoints had %d bytes, the channels alone %d", info[0].Bytes, sent)
					}
				})
			})
		}
	}
}

func TestWithoutAgreementTheChannelsAreClosed(t *testing.T) {
	for _, x := range []struct {
		name      string
		method    multifd.Method
		qemu      bool
		primary   func(*colo.PrimaryConfig)
		secondary func(*colo.SecondaryConfig)
	}{
		{"towards a QEMU", multifd.None, true, nil, nil},
		{"the secondary has none", multifd.None, false, nil, func(c *colo.SecondaryConfig) { c.Channels = colo.Channels{} }},
		{"the secondary has fewer", multifd.None, false, nil, func(c *colo.SecondaryConfig) {
			c.Channels.Conns[1].Close()
			c.Channels.Conns = c.Channels.Conns[:1]
		}},
		{"the secondary does not know the method", multifd.Zlib, false, nil, func(c *colo.SecondaryConfig) {
			c.Channels.Decoder = func(m multifd.Method) (multifd.Decoder, error) { return nil, multifd.ErrMethod }
		}},
		{"the primary has none", multifd.None, false, func(c *colo.PrimaryConfig) { c.Channels = colo.Channels{} }, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pair := newParallel(t, options{qemu: x.qemu, primary: x.primary, secondary: x.secondary}, x.method, colotest.Flow{}, colotest.Flow{})
				defer pair.close()
				pair.runAll(t)
				pair.wantWhole(t)
				if slices.Contains(pair.said, "use-channels") {
					t.Errorf("the secondary said %q", pair.said)
				}
				for i, c := range pair.ps {
					if n := c.Sent().Bytes; n != 0 {
						t.Errorf("channel %d has %d bytes", i, n)
					}
				}
				if pair.primary.Info().Checkpoints < checkpoints-1 || pair.primary.Info().Channels != 0 {
					t.Errorf("%+v", pair.primary.Info())
				}
			})
		})
	}
}

// A channel that breaks, at any write or read and within any, is a link that breaks: one
// side goes on, in a state that was.
func TestAChannelMayBreakAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut := func(again *pair, dies event.Mode, flows ...colotest.Flow) *parallel {
			x := newParallel(t, options{again: again}, multifd.None, flows...)
			x.dies(dies)
			x.runAll(t)
			return x
		}
		sides := []event.Mode{event.ModePrimary, event.ModeSecondary}
		x := cut(nil, event.ModeSecondary, colotest.Flow{}, colotest.Flow{})
		defer func() { x.close() }()
		x.wantWhole(t)
		took, n, few := map[string]int{}, 0, int64(min(sparse(), 3))
		traffic := []colotest.Traffic{x.ps[0].Sent(), x.ps[1].Sent()}
		for i, sent := range traffic {
			for at := range sent.Points(func(b int64) bool { return *every || b%(9001*few) == 0 }) {
				if !*every && at.Op != colotest.Byte && at.N%(3*few) != 0 {
					continue
				}
				for _, drop := range []bool{false, true} {
					flows := make([]colotest.Flow, 2)
					flows[i] = colotest.Flow{Break: at, Drop: drop}
					dead := sides[n%2]
					n++
					x = cut(x.pair, dead, flows...)
					if h := x.wantWhole(t); h.name == string(dead) {
						t.Errorf("the %s goes on, whose host has died", h.name)
					} else {
						took[h.name]++
					}
					wantOneExit(t, x.pair)
					if t.Failed() {
						t.Fatalf("channel %d cut at %v, drop %v: %v, %v", i, at, drop, x.p.err, x.s.err)
					}
				}
			}
		}
		t.Logf("%d times, took over: %v", n, took)
	})
}

// A channel that lies spoils the checkpoint, and the secondary says where.
func TestAChannelThatLiesSpoilsTheCheckpoint(t *testing.T) {
	for _, x := range []struct {
		name string
		at   int64
		want error
	}{
		{"init", 0, multifd.ErrMagic},
		{"whose it is", 8, multifd.ErrUUID},
		{"magic", 64, multifd.ErrMagic},
		{"flags", 64 + 8, multifd.ErrFlags},
		{"pages", 64 + 16, multifd.ErrCount},
		{"offset", 64 + 320, multifd.ErrOffset},
		{"block", 64 + 64, ram.ErrUnknownBlock},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				flow := colotest.Flow{Corrupt: map[int64]byte{x.at: 0x80, x.at + 7: 0x41}}
				pair := newParallel(t, options{}, multifd.None, flow)
				defer pair.close()
				var why error
				pair.witness.Deny = func(c colo.Claim) error {
					if c.Mode == event.ModeSecondary {
						why = c.Cause
						return errors.New("dead")
					}
					return nil
				}
				pair.runAll(t)
				pair.wantWhole(t)
				if n := pair.secondary.Info().Checkpoints; n > 0 {
					t.Errorf("%d checkpoints were committed", n)
				}
				var e *colo.Error
				if !errors.As(why, &e) || !errors.Is(why, x.want) {
					t.Errorf("the secondary asked because of %v, want %v", why, x.want)
				}
			})
		})
	}
}

// A channel that brings nothing more is a peer that is silent: neither the heartbeat
// nor the session's connection says otherwise for longer than the checkpoint may take.
func TestAChannelThatStandsStillIsNoticed(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(*colo.PrimaryConfig)
		want   error
		within time.Duration
	}{
		{"by the age of the checkpoint", func(c *colo.PrimaryConfig) { c.CheckpointTimeout = 5 * time.Second }, colo.ErrStalled, 5 * time.Second},
		{"by the peer's silence", func(c *colo.PrimaryConfig) { c.CheckpointTimeout, c.PeerTimeout = -1, 5*time.Second }, colo.ErrTimeout, 10 * time.Second}, // the second begins with the last byte
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stall := colotest.Flow{Stall: colotest.Point{Op: colotest.Byte, N: 5000}, Capacity: 8 << 10}
				pair := newParallel(t, options{primary: x.change}, multifd.None, stall, stall)
				defer pair.close()
				var why error
				var began time.Time
				var after time.Duration
				defer event.Subscribe(&pair.p.bus, func(event.CheckpointStart) { began = time.Now() })()
				pair.witness.Deny = func(c colo.Claim) error {
					if c.Mode == event.ModePrimary && why == nil {
						why, after = c.Cause, time.Since(began)
					}
					return nil
				}
				pair.start(t.Context())
				pair.wait()
				pair.wantWhole(t)
				if !errors.Is(why, x.want) {
					t.Errorf("the primary asked because of %v, want %v", why, x.want)
				}
				if after > x.within {
					t.Errorf("%v after the checkpoint had begun, want at most %v", after, x.within)
				}
			})
		})
	}
}

// What the channels of earlier checkpoints have brought says nothing of a peer that is
// silent now: each side notices after its own timeout.
func TestChannelsDoNotMakeUpForAPeerThatIsSilent(t *testing.T) {
	const timeout = 5 * time.Second
	for _, x := range []struct {
		silent event.Mode
		op     string // before which
	}{
		{event.ModeSecondary, "send checkpoint-reply"},
		{event.ModeSecondary, "stage disks"}, // and no vmstate-received
		{event.ModeSecondary, "commit"},      // and no vmstate-loaded
		{event.ModePrimary, "send checkpoint-request"},
	} {
		t.Run(fmt.Sprint(x.silent, " ", x.op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var pair *parallel
				var since time.Time
				silent := func(mode event.Mode) func(string, uint64) {
					return func(op string, epoch uint64) {
						h, _ := pair.side(mode)
						h.step(1)
						if mode == x.silent && op == x.op && epoch == 2 {
							since = time.Now()
							time.Sleep(10 * timeout)
						}
					}
				}
				o := options{
					primary: func(c *colo.PrimaryConfig) {
						c.PeerTimeout, c.CheckpointTimeout, c.Step = timeout, -1, silent(event.ModePrimary)
					},
					secondary: func(c *colo.SecondaryConfig) {
						c.PeerTimeout, c.IdleTimeout, c.Step = timeout, timeout, silent(event.ModeSecondary)
					},
				}
				pair = newParallel(t, o, multifd.None, colotest.Flow{}, colotest.Flow{})
				defer pair.close()
				var why error
				var asked time.Time
				pair.witness.Deny = func(c colo.Claim) error {
					if why == nil {
						why, asked = c.Cause, time.Now()
					}
					return nil
				}
				pair.runAll(t)
				if h := pair.wantWhole(t); h.name == string(x.silent) {
					t.Errorf("the %s goes on", h.name)
				}
				if after := asked.Sub(since); since.IsZero() || !errors.Is(why, colo.ErrTimeout) || after != timeout {
					t.Errorf("the other side asked after %v because of %v, want %v and a timeout", after, why, timeout)
				}
			})
		})
	}
}

// A failover that is ordered while a checkpoint's memory is on its way is carried out,
// and neither side waits for a channel.
func TestAFailoverEndsTheWaitForAChannel(t *testing.T) {
	for _, side := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		t.Run(string(side), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stall := colotest.Flow{Stall: colotest.Point{Op: colotest.Byte, N: 5000}, Capacity: 8 << 10}
				pair := newParallel(t, options{}, multifd.None, stall, stall)
				defer pair.close()
				pair.start(t.Context())
				synctest.Wait() // both wait for the channels
				h, r := pair.side(side)
				if err := r.Failover(); err != nil {
					t.Fatal(err)
				}
				pair.wait()
				if got := pair.wantWhole(t); got != h {
					t.Errorf("the %s went on", got.name)
				}
			})
		})
	}
}

func TestChannelsThatCannotBeUsedAreRefused(t *testing.T) {
	w := &world{cfg: small}
	h := newHost(t, w, "primary")
	defer h.close()
	a, _ := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	pc := h.primary()
	pc.Channels.Conns = []io.ReadWriteCloser{a}
	if _, err := colo.NewPrimary(a, pc); err == nil {
		t.Error("without a RAM that sends pages elsewhere")
	}
	open := func(of string) {
		t.Helper()
		if _, err := a.Write([]byte{1}); err != nil {
			t.Errorf("%s: the connections of the caller: %v", of, err)
		}
	}
	open("without a RAM that sends pages elsewhere")
	pc.RAM = h.saver
	pc.Channels.Conns = make([]io.ReadWriteCloser, 256)
	if _, err := colo.NewPrimary(a, pc); err == nil {
		t.Error("256 channels")
	}
	pc.Channels.Conns, pc.Channels.Method = []io.ReadWriteCloser{a}, multifd.Zstd
	if _, err := colo.NewPrimary(a, pc); !errors.Is(err, multifd.ErrMethod) {
		t.Errorf("without a compressor: %v", err)
	}
	open("without a compressor")
	made, broken := 0, errors.New("no memory")
	pc.Channels.Conns = append(pc.Channels.Conns, a)
	pc.Channels.Compressor = func(multifd.Method) (multifd.Compressor, error) {
		if made++; made == 2 {
			return nil, broken
		}
		return multifd.CompressZlib(multifd.Zlib)
	}
	if _, err := colo.NewPrimary(a, pc); !errors.Is(err, broken) {
		t.Errorf("without a second compressor: %v", err)
	}
	open("without a second compressor")
}

// counted is a decoder that has to be closed.
type counted struct {
	multifd.Decoder
	open *atomic.Int32
}

func (c counted) Close() { c.open.Add(-1) }

// counted2 is one whose Close returns an error.
type counted2 struct{ counted }

func (c counted2) Close() error { c.counted.Close(); return nil }

func TestEachDecoderIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made, open atomic.Int32
		decoder := func(m multifd.Method) (multifd.Decoder, error) {
			d, err := multifd.DecodeZlib(m)
			open.Add(1)
			if c := (counted{d, &open}); made.Add(1)%2 == 0 {
				return counted2{c}, err
			} else {
				return c, err
			}
		}
		pair := newParallel(t, options{secondary: func(c *colo.SecondaryConfig) { c.Channels.Decoder = decoder }},
			multifd.Zlib, colotest.Flow{}, colotest.Flow{})
		defer pair.close()
		pair.runAll(t)
		pair.wantWhole(t)
		if made.Load() < 2 || open.Load() != 0 {
			t.Errorf("%d decoders were made, %d are open", made.Load(), open.Load())
		}
	})
}
