package standby

import "syscall"

// huge asks for huge pages: staging writes to memory that is in no cache, and in
// a virtual machine the walk of the page tables costs as much as the copy. A
// refusal changes nothing but the time that it takes.
func huge(p []byte) { _ = syscall.Madvise(p, syscall.MADV_HUGEPAGE) }
