package colo_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// plainStage is a ram.Cache that takes no memory between checkpoints.
type plainStage struct{ colo.Stage }

// smallStage is a ram.Cache that takes a little memory between checkpoints.
type smallStage struct {
	colo.Stage
	bytes uint64
}

func (s smallStage) TakesEarly(bool) uint64 { return s.bytes }

// sends has a primary send memory early, in checkpoints a second apart.
func sends(c *colo.PrimaryConfig) { c.EarlyShare, c.CheckpointDelay = 0.5, time.Second }

func TestMemoryIsSentEarlyToWhoTakesIt(t *testing.T) {
	xbzrle := ram.SaverConfig{XBZRLE: 1 << 20}
	staged := ram.CacheConfig{StagedOnly: true}
	for name, test := range map[string]struct {
		o     options
		taken bool
	}{
		"a copy":                      {options{primary: sends}, true},
		"a copy and differences":      {options{primary: sends, saver: xbzrle}, true},
		"no copy":                     {options{primary: sends, cache: staged}, true},
		"no copy and differences":     {options{primary: sends, cache: staged, saver: xbzrle}, false},
		"the guest stands still long": {options{primary: func(c *colo.PrimaryConfig) { sends(c); c.LateResume = true }}, true},
		"nobody wants it":             {options{}, false},
		"towards a QEMU":              {options{primary: sends, qemu: true}, false},
		"from a QEMU":                 {options{primary: func(c *colo.PrimaryConfig) { sends(c); c.QEMUWire = true }}, false},
		"to one that does not":        {options{primary: sends, secondary: func(c *colo.SecondaryConfig) { c.RAM = plainStage{c.RAM} }}, false},
		"to one that takes nothing":   {options{primary: sends, secondary: func(c *colo.SecondaryConfig) { c.RAM = smallStage{c.RAM, 0} }}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if test.o.cache.StagedOnly {
				skipWithoutSparseMemory(t)
			}
			synctest.Test(t, func(t *testing.T) {
				var x *pair
				var said []string
				o := test.o
				o.guest = wide
				o.primary = func(c *colo.PrimaryConfig) {
					c.CheckpointDelay, c.Trace = time.Second, words(&said)
					c.Step = func(string, uint64) { x.p.step(1) }
					if test.o.primary != nil {
						test.o.primary(c)
					}
				}
				secondary := o.secondary
				o.secondary = func(c *colo.SecondaryConfig) {
					c.Step = func(string, uint64) { x.s.step(1) }
					if secondary != nil {
						secondary(c)
					}
				}
				x = newPair(t, o)
				defer x.close()
				x.runAll(t)
				x.wantWhole(t)
				if got := slices.Contains(said, "> early-pages"); got != test.taken {
					t.Errorf("memory was sent early: %v; the primary was told %q", got, said)
				}
				if x.primary.Info().Epoch < checkpoints-1 {
					t.Errorf("%+v", x.primary.Info())
				}
			})
		})
	}
}

func TestMemoryThatIsSentEarlyGoesOverChannels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		var early int64
		var x *parallel
		over := func() (n int64) { return x.ps[0].Sent().Bytes + x.ps[1].Sent().Bytes }
		x = newParallel(t, options{guest: wide, primary: func(c *colo.PrimaryConfig) {
			sends(c)
			c.Trace = words(&said)
			var before int64
			c.Step = func(op string, _ uint64) {
				x.p.step(1)
				switch op {
				case "send checkpoint-request":
					early += over() - before
				case "expect vmstate-received":
					before = over()
				}
			}
		}}, multifd.None, colotest.Flow{}, colotest.Flow{})
		defer x.close()
		x.runAll(t)
		x.wantWhole(t)
		if !slices.Contains(said, "> early-pages") || early < 3*ram.PageSize {
			t.Errorf("%d bytes went over the channels between checkpoints", early)
		}
	})
}

// A primary that has been asked for a checkpoint, or is to end, does nothing else any more.
func TestWhateverComesWhileMemoryIsSentEarlyWaitsForOneWrite(t *testing.T) {
	for name, ask := range map[string]func(*pair){
		"a divergence": func(x *pair) { x.primary.RequestCheckpoint(event.CauseDivergence) },
		"the end":      func(x *pair) { x.primary.End() },
		"a failover":   func(x *pair) { x.primary.Failover() },
		"a loss":       func(x *pair) { x.primary.Lost(errDisk) },
	} {
		if testing.Short() && (name == "a failover" || name == "a loss") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var x *pair
				var asked bool
				var sent int64
				after := 0
				x = newPair(t, options{
					guest: colotest.VMConfig{Pages: 2048, Touch: 256},
					primary: func(c *colo.PrimaryConfig) {
						c.EarlyShare, c.CheckpointDelay = 1, time.Second
						c.Step = func(op string, epoch uint64) {
							switch {
							case asked && op == "send ram early":
								after++
							case epoch == 1 && op == "send ram early" && !asked:
								x.p.step(4)
								sent, asked = x.pc.Sent().Bytes, true
								ask(x)
							case asked && op == "send checkpoint-request" && epoch == 2:
								sent = x.pc.Sent().Bytes - sent
								x.primary.End()
							}
						}
					},
				})
				defer x.close()
				event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
					if c.Epoch == 2 && c.Cause != event.CauseDivergence {
						t.Errorf("the checkpoint is of %s", c.Cause)
					}
				})
				x.start(t.Context())
				x.wait()
				x.wantWhole(t)
				if !asked || after != 0 {
					t.Errorf("%d pieces were sent after it", after)
				}
				if name == "a divergence" && (sent < 100<<10 || sent > 160<<10) {
					t.Errorf("the checkpoint waited for %d bytes, want a piece, a millisecond of a gigabit", sent)
				}
			})
		})
	}
}

// It takes its share of the link and no more: where nothing is known of the link, of a gigabit.
func TestMemoryIsSentEarlyAtItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const share = 0.25
		var x *pair
		var first, last time.Time
		var bytes, before int64
		pieces := 0
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 4096, Touch: 512},
			primary: func(c *colo.PrimaryConfig) {
				c.EarlyShare, c.CheckpointDelay = share, time.Second
				c.Step = func(op string, epoch uint64) {
					switch {
					case epoch != 1 || op != "send ram early":
						return
					case pieces == 0:
						x.p.step(8)
						first, before = time.Now(), x.pc.Sent().Bytes
					default:
						last, bytes = time.Now(), x.pc.Sent().Bytes-before
					}
					pieces++
				}
			},
		})
		defer x.close()
		defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 2 {
				x.pc.Break()
			}
		})()
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
		if bytes < 4<<20 {
			t.Fatalf("%d bytes in %d pieces", bytes, pieces)
		}
		took := last.Sub(first).Seconds()
		if rate, want := float64(bytes)/took, share*125e6; rate > want*1.02 {
			t.Errorf("%.0f bytes a second, want %.0f", rate, want)
		}
		if piece := bytes / int64(pieces); piece > 160<<10 {
			t.Errorf("a piece is of %d bytes, more than a millisecond of the link", piece)
		}
	})
}

func TestNoMoreIsSentEarlyThanIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 20 // pages
		var x *pair
		early, most := uint64(0), uint64(0)
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 64},
			primary: func(c *colo.PrimaryConfig) {
				sends(c)
				c.Step = func(op string, _ uint64) {
					switch op {
					case "send ram early":
						x.p.step(3)
					case "send checkpoint-request":
						early, _ = x.p.saver.Ahead()
						most = max(most, early)
					}
				}
			},
			secondary: func(c *colo.SecondaryConfig) { c.RAM = smallStage{c.RAM, takes*ram.PageSize + 125e3} },
		})
		defer x.close()
		x.runAll(t)
		x.wantWhole(t)
		if most < takes || most*ram.PageSize > takes*ram.PageSize+125e3+2*ram.PageSize {
			t.Errorf("%d pages were sent early, of %d bytes that are taken", most, takes*ram.PageSize+125000)
		}
	})
}

// recounting is a RAM of which little that was sent early need not go again.
type recounting struct {
	colo.EarlySender
	pages func() uint64
	begun int
}

func (r *recounting) BeginEarly(most int) uint64 { r.begun++; return r.EarlySender.BeginEarly(most) }
func (r *recounting) Ahead() (uint64, uint64)    { return 100, 100 - r.pages()/9 }
func (r *recounting) Pages() uint64              { return r.pages() }

func TestSendingEarlyRestsWhereItBringsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		counts := new(recounting)
		x = newPairIn(t, options{guest: wide, primary: func(c *colo.PrimaryConfig) {
			counts.EarlySender, counts.pages = x.p.saver, x.p.saver.Pages
			sends(c)
			c.RAM = counts
			c.Step = func(string, uint64) { x.p.step(1) }
		}}, func(made *pair) { x = made })
		defer x.close()
		var early []uint64
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if counts.begun > 0 {
				early = append(early, c.Epoch)
			}
			if counts.begun = 0; c.Epoch == 22 {
				x.pc.Break()
			}
		})
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
		if want := []uint64{1, 2, 11, 12, 21, 22}; !slices.Equal(early, want) {
			t.Errorf("memory was sent before the checkpoints %d, want %d", early, want)
		}
	})
}

// What was sent early is of the checkpoint that it was sent for, on both sides.
func TestACheckpointCountsWhatWasSentEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var before, sent int64
		x = newPair(t, options{guest: wide, primary: func(c *colo.PrimaryConfig) {
			sends(c)
			c.Step = func(op string, epoch uint64) {
				x.p.step(1)
				switch {
				case op == "send checkpoint-request" && epoch == 2:
					sent = x.pc.Sent().Bytes - before
				case op == "late resume" && epoch == 1:
					before = x.pc.Sent().Bytes
				}
			}
		}})
		defer x.close()
		var of [2]event.CheckpointCommit
		for i, h := range []*host{x.p, x.s} {
			event.Subscribe(&h.bus, func(c event.CheckpointCommit) {
				if c.Epoch == 2 {
					of[i] = c
				}
			})
		}
		x.runAll(t)
		if p, s := of[0], of[1]; p.Pages < uint64(sent)/ram.PageSize || p.Bytes != s.Bytes+4 /* the request */ || p.Bytes < uint64(sent) || sent < 10*ram.PageSize {
			t.Errorf("%d bytes went early; the primary counts %d bytes and %d pages, the secondary %d bytes", sent, p.Bytes, p.Pages, s.Bytes)
		}
	})
}

func TestAnEarlyShareThatIsNoneIsRefused(t *testing.T) {
	x := newPair(t, options{})
	defer x.close()
	for share, with := range map[float64]string{-0.1: "EarlyShare is", 1.1: "EarlyShare is", 0.5: "EarlySender"} {
		cfg := x.p.primary()
		cfg.EarlyShare = share
		if _, err := colo.NewPrimary(x.pc, cfg); err == nil || !strings.Contains(err.Error(), with) {
			t.Errorf("%v: %v", share, err)
		}
	}
	x.start(t.Context())
	x.primary.Lost(errors.New("enough"))
	x.secondary.Lost(errors.New("enough"))
	x.wait()
}

// The words are refused where they were not agreed on.
func TestEarlyPagesThatNobodyTakesEndTheSession(t *testing.T) {
	var r recording
	synctest.Test(t, func(t *testing.T) { r = record(t) })
	v, err := feed(t, slices.Concat(r.initial, r.first, early(r.part())), options{secondary: func(c *colo.SecondaryConfig) { c.RAM = plainStage{c.RAM} }})
	defer v.close()
	if err != nil {
		t.Fatal(err)
	}
	if !message(colo.EarlyPages, colo.CheckpointRequest)(v.cause) {
		t.Errorf("the session ended with %v", v.cause)
	}
}

func TestTheLinksRateIsThatOfLargeCheckpointsAndOfPiecesThatWait(t *testing.T) {
	const mb = 1e6
	var r colo.LinkRate
	want := func(why string, least, most float64) func(float64, int) {
		return func(rate float64, piece int) {
			t.Helper()
			if rate < least || rate > most {
				t.Errorf("%s: %.1f MB/s, want %.1f to %.1f", why, rate/mb, least/mb, most/mb)
			}
			if n := float64(piece); n < 16<<10 || n > 1<<20 || n > 16<<10 && n > rate/1000+1 {
				t.Errorf("%s: pieces of %d bytes at %.1f MB/s", why, piece, rate/mb)
			}
		}
	}
	want("a checkpoint of a page says nothing", 125*mb, 125*mb)(r.Carried(4096, time.Second))
	want("nor one that took no time", 125*mb, 125*mb)(r.Carried(64<<20, 0))
	want("a first checkpoint", 50*mb, 50*mb)(r.Carried(50*mb, time.Second))
	want("a faster one counts at once", 1000*mb, 1000*mb)(r.Carried(1000*mb, time.Second))
	want("a slower one little by little", 750*mb, 751*mb)(r.Carried(2*mb, time.Second))
	want("slow again", 500*mb, 600*mb)(r.Carried(2*mb, time.Second/20))
	rate, _ := r.Carried(0, 0)
	want("a piece that did not wait says little", rate, rate)(r.PieceTook(64<<10, 10*time.Microsecond))
	want("one that waited says how fast it is now", 32*mb, 66*mb)(r.PieceTook(64<<10, 2*time.Millisecond))
	want("a link that stands still is tried again", rate/16, rate/16)(r.PieceTook(64<<10, time.Minute))
	for range 100 {
		r.PieceTook(64<<10, 10*time.Microsecond)
	}
	want("and found to be as fast as ever", rate, rate)(r.Carried(0, 0))
}
