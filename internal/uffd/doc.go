// Package uffd makes the system calls of the two parts of Linux that tell a process
// about its own memory: userfaultfd, which says that a page is missing or was written,
// and the request PAGEMAP_SCAN on /proc/self/pagemap, which lists the pages that were
// written and protects them again in one step. Nothing else in this module makes these
// system calls.
//
// An [FD] is a userfaultfd. [Open] negotiates features and, where the kernel lacks one or
// does not let the process in, says which and what would help ([FeatureError],
// [PermissionError]). Memory is registered with it in a [Mode]:
//
//   - [ModeMissing]: a thread that touches a page which is not there waits, and
//     [FD.Faults] returns where, until [FD.Copy] or [FD.Zero] places the page.
//   - [ModeWriteProtect]: with [WPAsync] the kernel notes the first write to a page that
//     [FD.WriteProtect] or [Pagemap.Scan] has protected, and nobody waits.
//
// # Threads
//
// Every method may be called from any goroutine, but for those of a [Pagemap], which
// belongs to one at a time.
//
// Go code must not touch a missing page itself. The thread that does waits in the kernel
// without the scheduler knowing: it keeps its place among GOMAXPROCS, and a garbage
// collection that begins then waits for it, and the goroutine that would serve the page
// for the collection. A system call that touches it is fine, KVM_RUN among them;
// [Populate] is one for the purpose.
//
// # What a process needs
//
// root, or CAP_SYS_PTRACE, or the sysctl vm.unprivileged_userfaultfd at 1, or access to
// /dev/userfaultfd. The userfaultfd that any process gets otherwise
// (UFFD_USER_MODE_ONLY) sees only what user code touches, and so not what a KVM guest
// does; it is not used.
package uffd
