package netns

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// A Link is a network namespace whose loopback interface carries a number of bits a second
// and no more, so that two ends that both are in this process are as far from each other as
// two hosts, for the kernel's TCP. What both directions carry counts together.
type Link struct{ space }

// NewLink makes one, whose rate is in the words of tc: "1gbit". It is there until the test
// ends. It skips the test where there can be none.
func NewLink(t testing.TB, rate string) *Link {
	t.Helper()
	l := &Link{enter(t)}
	ip := require.Program(t, require.NetNS, "ip")
	if err := l.Do(func() error { return run(ip + " link set lo up") }); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	l.Limit(t, "lo", rate)
	return l
}

// Limit has an interface of the namespace send no more than a rate, in the words of tc.
func (s space) Limit(t testing.TB, dev, rate string) {
	t.Helper()
	tc := require.Program(t, require.NetNS, "tc")
	// The largest segment must fit into the burst.
	words := tc + " qdisc add dev " + dev + " root tbf rate " + rate + " burst 128kb latency 50ms"
	if err := s.Do(func() error { return run(words) }); err != nil {
		require.Missing(t, require.NetNS, err)
	}
}

func run(words string) error {
	args := strings.Fields(words)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", words, err, out)
	}
	return nil
}
