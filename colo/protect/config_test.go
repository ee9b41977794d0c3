package protect

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// ofBlocks is a guest that has other memory.
type ofBlocks struct {
	Guest
	blocks []ram.Block
}

func (g ofBlocks) Blocks() []ram.Block { return g.blocks }

func TestWhatCannotWorkIsRefusedAtNew(t *testing.T) {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	a := newAuthority(t)
	good := func() Config {
		return Config{
			Name: "g", Host: "a", Guest: g,
			Peer: Peer{Listen: "127.0.0.1:0", Dial: "127.0.0.1:1", PortConfig: PortConfig{Insecure: true}},
		}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"MinInterval":                    func(c *Config) { c.MinInterval = 5 * time.Second },
		"MinInterval, -1ns, is negative": func(c *Config) { c.MinInterval = -1 },
		"MaxStaged":                      func(c *Config) { c.MaxStaged = 1 },
		"guest's name":                   func(c *Config) { c.Name = "" },
		"guest's name, ":                 func(c *Config) { c.Name = "db\n1" },
		"ArbiterKind":                    func(c *Config) { c.ArbiterKind = "etcd\n" },
		"host's name, ":                  func(c *Config) { c.Host = "a\x1b[2J" },
		"host's name":                    func(c *Config) { c.Host = strings.Repeat("x", 256) },
		"machine type":                   func(c *Config) { c.Machine = strings.Repeat("x", 256) },
		"needs a Guest":                  func(c *Config) { c.Guest = nil },
		"not a multiple":                 func(c *Config) { c.Guest = ofBlocks{g, []ram.Block{{Name: "ram", Host: make([]byte, ram.PageSize+1)}}} },
		"not unique":                     func(c *Config) { c.Guest = ofBlocks{g, []ram.Block{{Name: "ram"}, {Name: "ram"}}} },
		"at most 1024": func(c *Config) {
			many := make([]ram.Block, maxList+1)
			for i := range many {
				many[i].Name = fmt.Sprint(i)
			}
			c.Guest = ofBlocks{g, many}
		},
		"Offer":           func(c *Config) { c.Offer = make([]byte, maxHello) },
		"Dial and Dialer": func(c *Config) { c.Peer.Dial = "" },
		"missing port":    func(c *Config) { c.Peer.Dial = "host-b" },
		"as in :7777":     func(c *Config) { c.Peer.Listen = "host-a" },
		"has no port":     func(c *Config) { c.Peer.Dial = "host-b:" },
		"too many colons": func(c *Config) { c.Peer.Dial = "fe80::1" },
		"Listen and Port": func(c *Config) { c.Peer.Listen = "" },
		"Insecure":        func(c *Config) { c.Peer.Insecure = false },
		"both TLS":        func(c *Config) { c.Peer.TLS, c.Peer.Name = a.host(t, "a"), "b" },
		"the Name":        func(c *Config) { c.Peer.PortConfig = PortConfig{TLS: a.host(t, "a")} },
		"RootCAs": func(c *Config) {
			c.Peer.PortConfig, c.Peer.Name = PortConfig{TLS: a.host(t, "a")}, "b"
			c.Peer.TLS.RootCAs = nil
		},
		"certificate of": func(c *Config) {
			c.Peer.PortConfig, c.Peer.Name = PortConfig{TLS: a.host(t, "a")}, "b"
			c.Peer.TLS.Certificates = nil
		},
		"SkipVerify": func(c *Config) {
			c.Peer.PortConfig, c.Peer.Name = PortConfig{TLS: a.host(t, "a")}, "b"
			c.Peer.TLS.InsecureSkipVerify = true
		},
		"MaxVersion": func(c *Config) {
			c.Peer.PortConfig, c.Peer.Name = PortConfig{TLS: a.host(t, "a")}, "b"
			c.Peer.TLS.MaxVersion = tls.VersionTLS12
		},
		"without Start":    func(c *Config) { c.Held = 1 },
		"negative":         func(c *Config) { c.Beat = -1 },
		"more often":       func(c *Config) { c.Beat, c.Lost = time.Second, time.Second },
		"PeerTimeout":      func(c *Config) { c.PeerTimeout = time.Second },
		"too short":        func(c *Config) { c.Term = failover.MinTerm - 1 },
		"Network 0 is nil": func(c *Config) { c.Network = []Network{nil} },
		"the Instance 7": func(c *Config) {
			for range 2 {
				n, err := NewNIC(NICConfig{Instance: 7, Uplink: newWire()})
				if err != nil {
					t.Fatal(err)
				}
				c.Network = append(c.Network, n)
			}
		},
	} {
		c := good()
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
}

func TestTimesAreWhatThePackageCommentSays(t *testing.T) {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := Config{Name: "g", Host: "a", Guest: g, Peer: Peer{Listen: ":1", Dial: "y:1", PortConfig: PortConfig{Insecure: true}}}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	doc := packageComment(t)
	for name, d := range map[string]time.Duration{
		"CheckpointDelay": c.CheckpointDelay, "Beat": c.Beat, "Lost": c.Lost, "Term": c.Term, "PeerTimeout": c.PeerTimeout, "CheckpointTimeout": c.CheckpointTimeout, "MinInterval": c.MinInterval, "": greetTime,
	} {
		want := strings.Replace(d.String(), "ms", " ms", 1)
		if !strings.HasSuffix(want, "ms") {
			want = strings.Replace(want, "s", " s", 1)
		}
		found := false
		for _, line := range strings.Split(doc, "\n") {
			f := strings.Fields(strings.TrimPrefix(line, "//"))
			if name != "" && len(f) > 2 && f[0] == name && f[1]+" "+f[2] == want || name == "" && len(f) > 2 && f[0]+" "+f[1] == want {
				found = true
			}
		}
		if !found {
			t.Errorf("the package comment does not say %s %s", name, want)
		}
	}
}

func TestWhatASessionWouldRefuseIsRefusedAtNew(t *testing.T) {
	for want, c := range map[string]SessionConfig{
		"first synchronisation": {MaxDowntime: 5 * time.Second},
		"ThrottleShare":         {ThrottleShare: 1.1},
		"EarlyShare":            {EarlyShare: -0.1},
		"out of range":          {XBZRLE: -1},
		"a number that is out":  {KeepAfter: 8},
		"a number":              {ThrottleMax: 100},
	} {
		if err := c.check(5 * time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
	if err := (&SessionConfig{ThrottleMax: -1, ThrottleShare: 0.5}).check(5 * time.Second); err != nil {
		t.Error(err)
	}
}
