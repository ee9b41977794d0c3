package linuxguest

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// Where this host has no KVM, the tests of the packages on KVM skip most of what they have. They run in
// machines then, as far as -short has them, each beside the files that it reads; but for those of a Linux guest, which
// run there on any host, and one that reads sources. So do the main example's tests of its guests on KVM.
func TestTheSuitesOfKVMPassInsideAMachineWhereThisHostHasNone(t *testing.T) {
	needKit(t, "qemu-system-x86_64")
	if _, err := os.Stat("/dev/kvm"); !errors.Is(err, fs.ErrNotExist) {
		t.Skip("this host has a /dev/kvm, and runs them itself")
	}
	for _, suite := range []struct {
		binary, args string
		files        map[string]string
		least        int // how many tests pass at least: fewer have skipped for a reason that nobody knew of
	}{
		{"kvm.test", "-test.short -test.skip TestEachRuleOnRecord", map[string]string{"testdata/vcpu-v1.hex": "../../kvm/testdata/vcpu-v1.hex"}, 250},
		{"pc.test", "-test.short", map[string]string{"doc.go": "../../kvm/pc/doc.go"}, 50},
		{"gokvmhost.test", "-test.short -test.skip '^TestLinux'", nil, 40},
		{"lockstep.test", "-test.run 'TestKVMGuestSurvives|TestAGuestThatEndsHasSent|TestWhileVCPUsRun|TestTheDirtyLogOfEither/kvm'", nil, 5},
	} {
		t.Run(suite.binary, func(t *testing.T) {
			t.Parallel()
			results := insideAMachine(t, "suite", suite.binary, suite.args, suite.files, false)
			passed := 0
			for _, result := range results {
				if result == "PASS" {
					passed++
				}
			}
			t.Logf("%d of %d passed, and the others were skipped or have failed", passed, len(results))
			if passed < suite.least {
				t.Errorf("%d tests passed, want %d or more", passed, suite.least)
			}
		})
	}
}
