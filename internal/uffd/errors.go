package uffd

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"strings"
)

var (
	// ErrExists: a page is there already, and was left as it is.
	ErrExists = errors.New("uffd: page exists")
	// ErrClosed: the FD is closed.
	ErrClosed = errors.New("uffd: closed")
	// ErrRange: memory that is empty or not whole pages of the host.
	ErrRange = errors.New("uffd: not whole pages")
)

// A Feature is a set of UFFD_FEATURE_* bits (linux/userfaultfd.h).
type Feature uint64

// The features that this module uses.
const (
	PagefaultFlagWP  Feature = 1 << 0  // write-protect faults, Linux 5.7
	MissingHugetlbfs Feature = 1 << 4  // missing pages of hugetlbfs, 4.11
	MissingShmem     Feature = 1 << 5  // missing pages of shared memory, 4.11
	ThreadID         Feature = 1 << 8  // a fault says which thread waits, 4.14
	WPHugetlbfsShmem Feature = 1 << 12 // write-protect beyond anonymous memory, 5.19
	WPUnpopulated    Feature = 1 << 13 // pages that were never touched can be protected, 6.4
	WPAsync          Feature = 1 << 15 // the kernel resolves write-protect faults, 6.7
)

// featureNames are in the order of their bits, with the first Linux that has each on x86-64.
var featureNames = [...]struct{ name, since string }{
	0:  {"PAGEFAULT_FLAG_WP", "5.7"},
	1:  {"EVENT_FORK", "4.11"},
	2:  {"EVENT_REMAP", "4.11"},
	3:  {"EVENT_REMOVE", "4.11"},
	4:  {"MISSING_HUGETLBFS", "4.11"},
	5:  {"MISSING_SHMEM", "4.11"},
	6:  {"EVENT_UNMAP", "4.11"},
	7:  {"SIGBUS", "4.14"},
	8:  {"THREAD_ID", "4.14"},
	9:  {"MINOR_HUGETLBFS", "5.13"},
	10: {"MINOR_SHMEM", "5.14"},
	11: {"EXACT_ADDRESS", "5.18"},
	12: {"WP_HUGETLBFS_SHMEM", "5.19"},
	13: {"WP_UNPOPULATED", "6.4"},
	14: {"POISON", "6.6"},
	15: {"WP_ASYNC", "6.7"},
	16: {"MOVE", "6.8"},
}

// String returns the kernel's names, with the first Linux that has each.
func (f Feature) String() string {
	var names []string
	for rest := uint64(f); rest != 0; rest &= rest - 1 {
		if i := bits.TrailingZeros64(rest); i < len(featureNames) {
			names = append(names, fmt.Sprintf("UFFD_FEATURE_%s (Linux %s on x86-64)", featureNames[i].name, featureNames[i].since))
		} else {
			names = append(names, fmt.Sprintf("feature bit %d", i))
		}
	}
	return strings.Join(names, ", ")
}

// FeatureError says that the kernel lacks something. It wraps [errors.ErrUnsupported].
type FeatureError struct {
	// Missing are the features of userfaultfd that were asked for and are not there.
	Missing Feature
	// What names something else that is missing, such as a system call; it is empty if
	// Missing is not.
	What string
}

// Error implements error.
func (e *FeatureError) Error() string {
	if e.Missing != 0 {
		return fmt.Sprintf("uffd: the kernel lacks %v", e.Missing)
	}
	return "uffd: the kernel lacks " + e.What
}

// Unwrap returns [errors.ErrUnsupported].
func (e *FeatureError) Unwrap() error { return errors.ErrUnsupported }

// PermissionError says that the process may not open a userfaultfd that sees what KVM
// touches. It wraps [fs.ErrPermission].
type PermissionError struct {
	Call, Device error // of userfaultfd(2), and of opening /dev/userfaultfd
}

// Error implements error.
func (e *PermissionError) Error() string {
	return fmt.Sprintf("uffd: no userfaultfd for this process: it needs CAP_SYS_PTRACE (root), the sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd (%v; %v)", e.Call, e.Device)
}

// Unwrap returns [fs.ErrPermission].
func (e *PermissionError) Unwrap() error { return fs.ErrPermission }
