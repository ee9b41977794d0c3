package leaks_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/leaks"
)

func TestACallIsRefusedOnOneThreadAndWithItsArgumentsAlone(t *testing.T) {
	me := os.Getpid()
	ask := func(pid int) error { _, err := unix.Getpgid(pid); return err }
	for name, args := range map[string]map[int]uint32{"any argument": nil, "mine": {0: uint32(me)}} {
		err := leaks.Refuse(t, leaks.Call{Number: unix.SYS_GETPGID, Args: args}, unix.EXFULL, func() error {
			if err := ask(me); !errors.Is(err, unix.EXFULL) {
				return errors.Join(errors.New("the call is not refused"), err)
			}
			if err := ask(0); (args == nil) != errors.Is(err, unix.EXFULL) {
				return errors.Join(errors.New("with 0"), err)
			}
			if os.Getpagesize() == 0 || unix.Getuid() != os.Getuid() {
				return errors.New("another call is refused")
			}
			return errors.New("as it should be")
		})
		if err == nil || err.Error() != "as it should be" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(me); err != nil {
		t.Error("on another thread:", err)
	}
}
