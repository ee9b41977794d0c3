package leaks

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// judged is a test that notes how it ends.
type judged struct{ how string }

func (j *judged) Helper()               {}
func (j *judged) Errorf(string, ...any) { j.how += "error" }
func (j *judged) Fatalf(string, ...any) { j.how += "fatal" }
func (j *judged) Skipf(string, ...any)  { j.how += "skip" }

// A filter keeps a second one from the thread, as a kernel without seccomp, or a sandbox, keeps any.
func TestATestIsSkippedWhereNoFilterCanBeSet(t *testing.T) {
	for with, want := range map[unix.Errno]string{
		unix.EINVAL: "skip", unix.ENOSYS: "skip", unix.EPERM: "skip", unix.EACCES: "skip", unix.ENOMEM: "fatal",
	} {
		prctl := Call{Number: unix.SYS_PRCTL, Args: map[int]uint32{0: unix.PR_SET_SECCOMP}}
		err := Refuse(t, prctl, with, func() error { return Call{Number: unix.SYS_GETPGID}.refuse(unix.EXFULL) })
		var j judged
		if unable(&j, err); j.how != want || !errors.Is(err, with) {
			t.Errorf("%v: %v, %q; want %q", with, err, j.how, want)
		}
	}
}
