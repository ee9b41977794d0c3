package netns

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/require"
)

// The addresses of a guest and of its only neighbour, a client.
const (
	GuestMAC, ClientMAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
	Guest4, Client4     = "10.9.0.1", "10.9.0.2"
	Guest6, Client6     = "fd09::1", "fd09::2"
)

// A Stack is a network namespace with one interface, whose other end the Device is.
type Stack struct {
	*tap.Device
	space
}

// New makes the stack of a guest or of the client, in a thread of this process; it is
// there until the test ends. Two guests have one address. Each stack is given its
// neighbour's hardware address at the start, since the time at which it would ask for
// the address is a matter of chance. It skips the test where no namespace or no TAP
// interface can be made.
func New(t *testing.T, guest bool, dev tap.Config) *Stack {
	t.Helper()
	s := &Stack{space: enter(t)}
	me4, me6, mac, you4, you6, yours := Client4, Client6, ClientMAC, Guest4, Guest6, GuestMAC
	if guest {
		me4, me6, mac, you4, you6, yours = Guest4, Guest6, GuestMAC, Client4, Client6, ClientMAC
	}
	dev.Name = "net0"
	ip := require.Program(t, require.NetNS, "ip")
	if err := s.Do(func() (err error) { s.Device, err = tap.Open(dev); return err }); err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(func() { s.Close() })
	s.In(t, func() error {
		cmd := exec.Command(ip, "-batch", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`
			link set lo up
			link set net0 address %s txqueuelen 20000 addrgenmode none
			link set net0 up
			address add %s/24 dev net0
			address add %s/64 dev net0 nodad
			neighbour replace %s lladdr %s dev net0 nud permanent
			neighbour replace %s lladdr %s dev net0 nud permanent
		`, mac, me4, me6, you4, yours, you6, yours))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return s
}

// In is Do for a test that cannot go on after an error.
func (s *Stack) In(t *testing.T, fn func() error) {
	t.Helper()
	if err := s.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// ReadPacket reads a frame for the stack's neighbour. It leaves multicast out, of which
// a stack sends some whenever it likes.
func (s *Stack) ReadPacket() ([]byte, error) {
	for {
		p, err := s.Device.ReadPacket()
		if err != nil || p[s.VNetHdrLen()]&1 == 0 {
			return p, err
		}
	}
}

// ReadInto does what ReadPacket does, in memory of the caller.
func (s *Stack) ReadInto(p []byte) (int, error) {
	for {
		n, err := s.Device.ReadInto(p)
		if err != nil || p[s.VNetHdrLen()]&1 == 0 {
			return n, err
		}
	}
}

// Each calls fn with what ReadPacket returns, which is valid until fn returns, until the
// interface is closed.
func (s *Stack) Each(fn func(p []byte)) {
	for {
		p, err := s.ReadPacket()
		if err != nil {
			return
		}
		fn(p)
	}
}
