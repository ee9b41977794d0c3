package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// What befalls seeds from versionSeeds on besides all the rest: a host speaks another version of the hello for
// a while, as one does that is upgraded or not yet; the guest is handed over and back within a beat; and a
// certificate expires while a session goes on that has begun with it.

// versionSeeds is the first of them.
const versionSeeds = 1 << 38

// versioned says what a seed has of this.
type versioned struct {
	draw *rand.Rand // nil: of seeds below versionSeeds

	others, expire int
	turns          atomic.Int64 // times that the guest was handed over and back
}

// versions has by which number each host's version of the hello is another than this one, by host.
type versions map[string]*atomic.Int32

// heed chooses whose arbiters heed the word of a primary that has given its guest up (failover.Claim.From): that of
// every host, but of seeds from versionSeeds on, where some do. Seeds that found something before that
// was made have arbiters as they were.
func (s *simulation) heed(seed uint64) {
	switch {
	case slices.Contains(keptSeeds, seed), slices.Contains(keptAsTheyAre, seed), slices.Contains(keptFresh, seed):
		s.world.heeds = []string{}
	case seed >= versionSeeds:
		draw := rand.New(rand.NewPCG(seed, 15))
		s.world.heeds = []string{}
		for _, name := range s.names {
			if draw.IntN(3) > 0 {
				s.world.heeds = append(s.world.heeds, name)
			}
		}
	}
}

// isVersioned chooses whether a seed has any of it. The hosts there can be are known.
func (s *simulation) isVersioned(seed uint64) {
	if seed < versionSeeds {
		return
	}
	s.versioned.draw = rand.New(rand.NewPCG(seed, 14))
	s.versions = versions{}
	for _, name := range s.names {
		s.versions[name] = new(atomic.Int32)
	}
}

// wrap has what a host says on a connection be of its version; without versions it returns c.
func (v versions) wrap(name string, c net.Conn) net.Conn {
	if v == nil {
		return c
	}
	return &versionedConn{Conn: c, by: v[name]}
}

// A versionedConn is a connection on which a hello may be of another version.
type versionedConn struct {
	net.Conn
	by   *atomic.Int32
	said atomic.Bool // the hello
}

func (c *versionedConn) Write(p []byte) (int, error) {
	if by := c.by.Load(); by != 0 && !c.said.Load() && len(p) >= 10 && bytes.HasPrefix(p, []byte(helloMagic)) {
		p = bytes.Clone(p)
		binary.BigEndian.PutUint16(p[len(helloMagic):], uint16(helloVersion+by))
	}
	c.said.Store(true)
	return c.Conn.Write(p)
}

// befallsVersions makes one fault of those, and reports whether it has made one.
func (s *simulation) befallsVersions(h *host) bool {
	v := &s.versioned
	if v.draw == nil || v.draw.IntN(4) > 0 {
		return false
	}
	switch what := v.draw.IntN(6); {
	case what < 3:
		by := int32([]int{-1, 1, 1<<16 - 1 - helloVersion, 0}[v.draw.IntN(4)])
		s.say("%s speaks version %d", h.name, helloVersion+by)
		s.versions[h.name].Store(by)
		v.others++
		if v.draw.IntN(2) == 0 { // each connection is made anew
			s.f.ways.mend(true)
		}
	case what == 3 && s.certificates != nil:
		s.say("%s is given a certificate that expires soon", h.name)
		s.certificates.puts(h.name, certificatesOfAll()["that expires soon"][0])
		v.expire++
	default:
		s.thereAndBack(h)
	}
	return true
}

// thereAndBack hands the guest over, and back as soon as the pair is in step again.
func (s *simulation) thereAndBack(h *host) {
	v := &s.versioned
	within := time.Duration(v.draw.Int64N(int64(DefaultBeat)))
	again := v.draw.IntN(3) > 0 // or the follower is told to go on
	s.verb(h, "there and back", func(ctx context.Context) error {
		if err := h.job.Switchover(ctx); err != nil {
			return err
		}
		for end := time.Now().Add(DefaultBeat); time.Now().Before(end); wait.For(ctx, time.Millisecond) {
			for _, o := range s.living() {
				if o.job.State() != Protected {
					continue
				}
				wait.For(ctx, within/4)
				v.turns.Add(1)
				if again || s.manual {
					return o.job.Switchover(ctx)
				}
				return h.job.Failover()
			}
		}
		return nil
	})
}

// ofVersions adds up what the seeds have seen of this.
type ofVersions struct{ seeds, others, expire, turns int }

func (a *ofVersions) add(s *simulation) {
	if v := &s.versioned; v.draw != nil {
		*a = ofVersions{a.seeds + 1, a.others + v.others, a.expire + v.expire, a.turns + int(v.turns.Load())}
	}
}

// check reports it, and what many seeds have seen nothing of.
func (a *ofVersions) check(t *testing.T) {
	if a.seeds == 0 {
		return
	}
	t.Logf("in %d seeds %d times a host spoke another version, %d times a certificate was to expire soon, %d times the guest was handed over and back within a beat",
		a.seeds, a.others, a.expire, a.turns)
	if a.seeds >= 400 && min(a.others, a.expire, a.turns) == 0 {
		t.Error("some of it has never happened")
	}
}
