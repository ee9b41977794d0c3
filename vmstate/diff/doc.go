// Package diff compares two migration streams without knowing their devices:
// what a destination would hold after loading each, and whether the machine that
// has written one would load the other.
//
//	a, err := diff.Read(qemufile.NewReader(fileA), diff.Config{})
//	b, err := diff.Read(qemufile.NewReader(fileB), diff.Config{})
//	for _, d := range diff.Compare(a, b) { … }   // what differs
//	for _, f := range diff.Load(a, b) { … }      // what keeps b's machine from loading a
//
// What does not survive a load is no difference: section ids, footers, the order
// of sections, pages and devices that came twice (the last counts), and how a page
// was sent.
//
// [Load] follows the rules by which QEMU loads (migration/savevm.c, vmstate.c and
// ram.c). A stream tells what its machine sends, and not all that it accepts: what
// can be known for certain is a [Refusal], what depends on the machine a [Doubt].
package diff
