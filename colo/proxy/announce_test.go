package proxy_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/google/go-cmp/cmp"
)

var announcedMAC = [6]byte{0x52, 0x54, 0, 0, 0, 1}

func guestAt(addr string) proxy.Neighbor {
	return proxy.Neighbor{MAC: announcedMAC, Addr: netip.MustParseAddr(addr)}
}

// A listener hears announcements.
type listener struct {
	frames []string
	at     []time.Duration
	begin  time.Time
	err    func(n int) error
}

func (l *listener) WritePacket(p []byte) error {
	l.frames = append(l.frames, hex.EncodeToString(p))
	l.at = append(l.at, time.Since(l.begin))
	if l.err != nil {
		return l.err(len(l.frames))
	}
	return nil
}

// What qemu-system-x86_64 7.2.22 sent for announce-self, by filter-dump.
const qemuRARP = "ffffffffffff525400000001803500010800060400035254000000010000000052540000000100000000" + "000000000000000000000000000000000000"

func TestTheGuestIsAnnouncedInEveryWay(t *testing.T) {
	v6 := guestAt("fe80::5054:ff:fe00:1")
	v6.Router = true
	tagged := guestAt("10.0.0.2")
	tagged.VLAN, tagged.Outer = 5, 7
	l := new(listener)
	if err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{
		Neighbors: []proxy.Neighbor{guestAt("10.0.0.1"), v6, tagged, {MAC: announcedMAC}}, Rounds: 1,
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		qemuRARP,
		"ffffffffffff525400000001" + "88a80007" + "81000005" + qemuRARP[24:len(qemuRARP)-16],
		"ffffffffffff525400000001" + "0806" + "0001080006040001" + "5254000000010a000001" + "0000000000000a000001" + strings.Repeat("00", 18),
		"333300000001525400000001" + "86dd" + "6000000000203aff" + "fe80000000000000505400fffe000001" + "ff020000000000000000000000000001" +
			"8800" + "e89d" + "a0000000" + "fe80000000000000505400fffe000001" + "0201525400000001",
		"ffffffffffff525400000001" + "88a80007" + "81000005" + "0806" + "0001080006040001" + "5254000000010a000002" + "0000000000000a000002" + strings.Repeat("00", 10),
	}
	if d := cmp.Diff(want, l.frames); d != "" {
		t.Error(d)
	}
	b, err := hex.DecodeString(l.frames[3])
	if err != nil {
		t.Fatal(err)
	}
	var p packet.Packet
	p.Parse(b)
	if sum := packet.Sum(p.PseudoSum(), p.Payload()); sum != 0xffff {
		t.Errorf("the sum of the advertisement with its checksum is %#x", sum)
	}
	bare := l.frames
	l = new(listener)
	if err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{
		Neighbors: []proxy.Neighbor{guestAt("10.0.0.1"), v6, tagged}, Rounds: 1, VNetHdr: 12,
	}); err != nil {
		t.Fatal(err)
	}
	for i := range bare {
		if i < len(l.frames) && l.frames[i] != strings.Repeat("00", 12)+bare[i] {
			t.Errorf("behind a header: %s", l.frames[i])
		}
	}
}

func TestAnnouncementsAreRepeatedWithGrowingGaps(t *testing.T) {
	ms := func(n ...int) (d []time.Duration) {
		for _, n := range n {
			d = append(d, time.Duration(n)*time.Millisecond)
		}
		return d
	}
	for _, c := range []struct {
		cfg  proxy.AnnounceConfig
		want []time.Duration
	}{
		{proxy.AnnounceConfig{}, ms(0, 50, 200, 450, 800)},
		{proxy.AnnounceConfig{Rounds: 4, Initial: 10 * time.Millisecond, Step: 20 * time.Millisecond, Max: 40 * time.Millisecond}, ms(0, 10, 40, 80)},
		{proxy.AnnounceConfig{Rounds: 8}, ms(0, 50, 200, 450, 800, 1250, 1800, 2350)},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &listener{begin: time.Now()}
			c.cfg.Neighbors = []proxy.Neighbor{{MAC: announcedMAC}}
			if err := proxy.Announce(t.Context(), l, c.cfg); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, l.at); d != "" {
				t.Error(d)
			}
		})
	}
}

// A leaf is one of the gates that a frame has to pass, like a leaf of a double door. It is
// shut at first and opens once.
type leaf struct {
	open atomic.Bool
	ch   chan struct{}
}

func (g *leaf) Open() bool              { return g.open.Load() }
func (g *leaf) Opened() <-chan struct{} { return g.ch }

func TestNothingIsAnnouncedWhileTheGateIsShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{begin: time.Now()}
		g := &leaf{ch: make(chan struct{})}
		done := make(chan error)
		go func() {
			done <- proxy.Announce(t.Context(), l, proxy.AnnounceConfig{Neighbors: []proxy.Neighbor{guestAt("10.0.0.1")}, Gate: g, Rounds: 2})
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(l.frames) > 0 {
			t.Errorf("%d frames", len(l.frames))
		}
		g.open.Store(true)
		close(g.ch)
		if err := <-done; err != nil || len(l.frames) != 4 {
			t.Errorf("%v, %d frames", err, len(l.frames))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		l := new(listener)
		go func() {
			done <- proxy.Announce(ctx, l, proxy.AnnounceConfig{Neighbors: []proxy.Neighbor{{MAC: announcedMAC}}, Gate: &leaf{}})
		}()
		synctest.Wait()
		why := errors.New("over")
		cancel(why)
		if err := <-done; err != why || len(l.frames) > 0 {
			t.Errorf("%v, %d frames", err, len(l.frames))
		}
	})
}

func TestAnnouncingEndsWithTheContextOrTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		l := &listener{begin: time.Now()}
		done := make(chan error)
		go func() {
			done <- proxy.Announce(ctx, l, proxy.AnnounceConfig{Neighbors: []proxy.Neighbor{{MAC: announcedMAC}}})
		}()
		time.Sleep(60 * time.Millisecond)
		why := errors.New("over")
		cancel(why)
		if err := <-done; err != why || len(l.frames) != 2 {
			t.Errorf("%v after %d frames", err, len(l.frames))
		}
		gone := errors.New("gone")
		l = &listener{err: func(n int) error { return map[int]error{1: fmt.Errorf("a moment: %w", proxy.ErrFull), 2: gone}[n] }}
		if err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{Neighbors: []proxy.Neighbor{{MAC: announcedMAC}}}); !errors.Is(err, gone) || len(l.frames) != 2 {
			t.Errorf("%v after %d frames", err, len(l.frames))
		}
	})
}

func TestWhatIsNoGuestsIsNotAnnounced(t *testing.T) {
	with := func(change func(n *proxy.Neighbor)) proxy.Neighbor {
		n := guestAt("10.0.0.1")
		change(&n)
		return n
	}
	for why, n := range map[string]proxy.Neighbor{
		"no MAC":                   {},
		"a group":                  with(func(n *proxy.Neighbor) { n.MAC[0] |= 1 }),
		"nobody's address":         guestAt("0.0.0.0"),
		"everybody's":              guestAt("255.255.255.255"),
		"a group's":                guestAt("224.0.0.1"),
		"its own":                  guestAt("127.0.0.1"),
		"nobody's of IPv6":         guestAt("::"),
		"a group's of IPv6":        guestAt("ff02::1"),
		"IPv4 in IPv6":             guestAt("::ffff:10.0.0.1"),
		"with a zone":              guestAt("fe80::1%eth0"),
		"a VLAN of 4095":           with(func(n *proxy.Neighbor) { n.VLAN = 4095 }),
		"a tag around no other":    with(func(n *proxy.Neighbor) { n.Outer = 5 }),
		"an outer tag of 4095":     with(func(n *proxy.Neighbor) { n.VLAN, n.Outer = 1, 4095 }),
		"a good one and a bad one": with(func(n *proxy.Neighbor) { n.VLAN = 5000 }),
	} {
		l := new(listener)
		err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{Neighbors: []proxy.Neighbor{guestAt("10.0.0.9"), n}})
		if !errors.Is(err, proxy.ErrNeighbor) || len(l.frames) > 0 {
			t.Errorf("%s: %v, after %d frames", why, err, len(l.frames))
		}
	}
	l := new(listener)
	if err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{}); err != nil || len(l.frames) > 0 {
		t.Errorf("nothing: %v", err)
	}
}

func frameOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	arpOf    = "ffffffffffff 525400000001 %s 0806 0001080006040001 525400000001 0a000001 000000000000 0a000002"
	ndHeader = "333300000001 525400000001 86dd 6000000000203a%s %s ff020000000000000000000000000001 "
	linkAddr = "fe80000000000000505400fffe000001"
)

func TestNeighborsAreLearnedFromWhatTheGuestSays(t *testing.T) {
	v6, router := guestAt("fe80::5054:ff:fe00:1"), guestAt("fe80::5054:ff:fe00:1")
	router.Router = true
	tagged, twice := guestAt("10.0.0.1"), guestAt("10.0.0.1")
	tagged.VLAN = 5
	twice.VLAN, twice.Outer = 5, 7
	mac := proxy.Neighbor{MAC: announcedMAC}
	arp := func(tags string) string { return fmt.Sprintf(arpOf, tags) }
	nd := func(hops, src, rest string) string { return fmt.Sprintf(ndHeader, hops, src) + rest }
	for why, c := range map[string]struct {
		frame string
		want  []proxy.Neighbor
	}{
		"ARP":                               {arp(""), []proxy.Neighbor{guestAt("10.0.0.1")}},
		"in a VLAN":                         {arp("81000005"), []proxy.Neighbor{tagged}},
		"in two":                            {arp("88a80007 81006005"), []proxy.Neighbor{twice}},
		"with a priority":                   {arp("8100e000"), []proxy.Neighbor{guestAt("10.0.0.1")}},
		"in a VLAN, with a priority":        {arp("81000005 8100e000"), []proxy.Neighbor{tagged}},
		"in a VLAN behind a priority":       {arp("8100e000 81000005"), []proxy.Neighbor{tagged}},
		"in three":                          {arp("88a80007 81000005 81000006"), nil},
		"ARP for somebody else's MAC":       {strings.Replace(arp(""), "525400000001 0a", "525400000002 0a", 1), []proxy.Neighbor{mac}},
		"an ARP probe":                      {strings.Replace(arp(""), "0a000001", "00000000", 1), []proxy.Neighbor{mac}},
		"a packet of a host that it routes": {"525400000009 525400000001 0800 4500001400000000400600000a0000630a000002", []proxy.Neighbor{mac}},
		"a solicitation":                    {nd("ff", linkAddr, "8700 0000 00000000 "+linkAddr+" 0101525400000001"), []proxy.Neighbor{v6}},
		"a search for duplicates":           {nd("ff", strings.Repeat("00", 16), "8700 0000 00000000 "+linkAddr+" 0101525400000001"), []proxy.Neighbor{mac}},
		"an advertisement":                  {nd("ff", linkAddr, "8800 0000 20000000 "+linkAddr+" 0201525400000001"), []proxy.Neighbor{v6}},
		"a router's":                        {nd("ff", linkAddr, "8800 0000 a0000000 "+linkAddr+" 0201525400000001"), []proxy.Neighbor{router}},
		"a router's to all":                 {nd("ff", linkAddr, "8600 0000 40000000 "+linkAddr+" 0201525400000001"), []proxy.Neighbor{router}},
		"one that came by a router":         {nd("fe", linkAddr, "8800 0000 20000000 "+linkAddr+" 0201525400000001"), []proxy.Neighbor{mac}},
		"an echo":                           {nd("ff", linkAddr, "8000 0000 20000000 "+linkAddr+" 0201525400000001"), []proxy.Neighbor{mac}},
		"a frame from a group":              {"525400000009 535400000001 0800", nil},
	} {
		var n proxy.Neighbors
		for range 2 { // again is nothing new
			n.FromGuest(append(make([]byte, 12), frameOf(t, c.frame)...), 12)
		}
		if d := cmp.Diff(c.want, n.All(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", why, d)
		}
		f := frameOf(t, c.frame)
		for i := range f { // however it is cut
			n.FromGuest(f[:i], 0)
			n.ToGuest(f[:i], 0)
			n.FromGuest(f[:i], 12)
		}
		n.FromGuest(f, -1)
	}
}

func TestAnAddressThatSomebodyElseClaimsIsNotTheGuests(t *testing.T) {
	var n proxy.Neighbors
	own := frameOf(t, fmt.Sprintf(arpOf, ""))
	n.FromGuest(own, 0)
	n.ToGuest(own, 0) // its own, come back
	if len(n.All()) != 1 {
		t.Fatalf("%v", n.All())
	}
	other := frameOf(t, strings.ReplaceAll(fmt.Sprintf(arpOf, ""), "525400000001", "525400000002"))
	n.ToGuest(frameOf(t, strings.ReplaceAll(fmt.Sprintf(arpOf, "81000005"), "525400000001", "525400000002")), 0)
	if len(n.All()) != 1 {
		t.Fatalf("another VLAN's: %v", n.All())
	}
	if n.ToGuest(other, 0); len(n.All()) != 0 {
		t.Fatalf("%v", n.All())
	}
	n.FromGuest(frameOf(t, "525400000009 525400000001 0800"), 0)
	if got := n.All(); len(got) != 1 || got[0] != (proxy.Neighbor{MAC: announcedMAC}) {
		t.Errorf("its MAC is learned again: %v", got)
	}
}

// The guest has another MAC, which stays known, and has sent last from the one that is forgotten.
func TestAMACIsLearnedAgainWhenItsAddressWasForgotten(t *testing.T) {
	arp := fmt.Sprintf(arpOf, "")
	second := strings.NewReplacer("525400000001", "525400000003", "0a000001", "0a000003").Replace(arp)
	for why, forgets := range map[string]func(n *proxy.Neighbors){
		"another host claims it": func(n *proxy.Neighbors) {
			n.ToGuest(frameOf(t, strings.ReplaceAll(arp, "525400000001", "525400000002")), 0)
		},
		"a checkpoint is loaded that has it not": func(n *proxy.Neighbors) {
			p := new(proxy.Neighbors)
			p.FromGuest(frameOf(t, second), 0)
			if err := loadNeighbors(t, n, neighborState(t, p)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		var n proxy.Neighbors
		n.FromGuest(frameOf(t, second), 0)
		n.FromGuest(frameOf(t, arp), 0)
		forgets(&n)
		if got := n.All(); len(got) != 1 || got[0].MAC == announcedMAC {
			t.Fatalf("%s: %v", why, got)
		}
		n.FromGuest(frameOf(t, "525400000009 525400000001 0800"), 0)
		if got := n.All(); len(got) != 2 || got[1] != (proxy.Neighbor{MAC: announcedMAC}) {
			t.Errorf("%s, and the guest sends from it: %v", why, got)
		}
	}
}

func TestNeighborsAreBoundedAndLearnedWithoutAllocation(t *testing.T) {
	var n proxy.Neighbors
	f := frameOf(t, fmt.Sprintf(arpOf, ""))
	for i := range 3 * proxy.MaxNeighbors {
		f[30], f[31] = byte(i>>8), byte(i)
		n.FromGuest(f, 0)
	}
	if got := n.All(); len(got) != proxy.MaxNeighbors {
		t.Errorf("%d are known", len(got))
	}
	if a := testing.AllocsPerRun(100, func() { n.FromGuest(f, 0); n.ToGuest(f, 0) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func neighborState(t testing.TB, n *proxy.Neighbors) []byte {
	t.Helper()
	var reg vmstate.Registry
	if err := reg.Register(n.Entry(0), n); err != nil {
		t.Fatal(err)
	}
	var state bytes.Buffer
	w := qemufile.NewWriter(&state)
	if err := reg.SaveDevices(w); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return state.Bytes()
}

func loadNeighbors(t testing.TB, n *proxy.Neighbors, state []byte) error {
	t.Helper()
	var reg vmstate.Registry
	if err := reg.Register(n.Entry(0), n); err != nil {
		t.Fatal(err)
	}
	if err := reg.Load(qemufile.NewReader(bytes.NewReader(state)), nil); err != nil {
		reg.Rollback()
		return err
	}
	return reg.Commit()
}

func knownNeighbors(t testing.TB) *proxy.Neighbors {
	n := new(proxy.Neighbors)
	for _, s := range []string{
		fmt.Sprintf(arpOf, ""), fmt.Sprintf(arpOf, "88a80007 81006005"),
		fmt.Sprintf(ndHeader, "ff", linkAddr) + "8800 0000 a0000000 " + linkAddr + " 0201525400000001",
		"525400000009 525400000003 0800",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		n.FromGuest(b, 0)
	}
	return n
}

func TestASecondaryKnowsTheNeighborsOfItsPrimary(t *testing.T) {
	p, s := knownNeighbors(t), new(proxy.Neighbors)
	s.FromGuest(frameOf(t, "525400000009 525400000008 0800"), 0)
	state := neighborState(t, p)
	if err := loadNeighbors(t, s, state); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p.All(), s.All(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" || len(p.All()) != 4 {
		t.Errorf("%d: %s", len(p.All()), d)
	}
	at := bytes.Index(state, announcedMAC[:])
	for why, change := range map[string]func(b []byte){
		"a group":               func(b []byte) { b[at] |= 1 },
		"of no known kind":      func(b []byte) { b[at+10] = 5 },
		"a flag":                func(b []byte) { b[at+11] = 2 },
		"bytes behind":          func(b []byte) { b[at+27] = 1 },
		"a VLAN":                func(b []byte) { b[at+6] = 0xff },
		"there twice":           func(b []byte) { copy(b[at+28:], b[at:at+28]) },
		"an address of nobody":  func(b []byte) { clear(b[at+12 : at+28]) },
		"an address of no kind": func(b []byte) { b[at+10] = 0 },
	} {
		b := bytes.Clone(state)
		change(b)
		n := knownNeighbors(t)
		if err := loadNeighbors(t, n, b); !errors.Is(err, proxy.ErrNeighbor) || len(n.All()) != 4 {
			t.Errorf("%s: %v, %d are known", why, err, len(n.All()))
		}
	}
	b := bytes.Clone(state)
	b[at-1] = proxy.MaxNeighbors + 1
	if err := loadNeighbors(t, new(proxy.Neighbors), b); !errors.Is(err, vmstate.ErrBounds) {
		t.Errorf("too many: %v", err)
	}
}

func FuzzNeighbors(f *testing.F) {
	f.Add(neighborState(f, knownNeighbors(f)), []byte{})
	f.Add(neighborState(f, new(proxy.Neighbors)), []byte("\xff\xff\xff\xff\xff\xff\x52\x54\x00\x00\x00\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\x52\x54\x00\x00\x00\x01\x0a\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, state, frame []byte) {
		n := new(proxy.Neighbors)
		if err := loadNeighbors(t, n, state); err == nil {
			if again := neighborState(t, n); !bytes.Equal(again, neighborState(t, n)) {
				t.Fatal("saved otherwise")
			}
		}
		n.FromGuest(frame, 0)
		n.ToGuest(frame, 2)
		m := new(proxy.Neighbors)
		if err := loadNeighbors(t, m, neighborState(t, n)); err != nil || len(m.All()) != len(n.All()) {
			t.Fatalf("what was learned cannot be loaded: %v", err)
		}
		l := new(listener)
		if err := proxy.Announce(t.Context(), l, proxy.AnnounceConfig{Neighbors: n.All(), Rounds: 1}); err != nil || len(l.frames) < len(n.All()) {
			t.Fatalf("what was learned cannot be announced: %v", err)
		}
	})
}
