package ram

// A DirtyKeeper is a DirtyLog that can leave pages writable when it reports them. The next
// write to a page costs the guest a fault after each ReadDirty, one or two microseconds, or
// twenty times that where KVM does without the hardware's help. A page that is written
// before every checkpoint need not cost that fault: it would be reported in any case. A
// Saver and a Cache say which those are ([SaverConfig.KeepAfter],
// [CacheConfig.KeepAfter]).
//
// What follows with "must" is checked by colotest.TestVM.
type DirtyKeeper interface {
	// KeepDirty names the pages of a block that ReadDirty may leave writable from now on,
	// in place of those that were named before; nil names none. A page that it leaves so
	// must be marked by every later call of ReadDirty, since it may have been written,
	// and the first call after the page is not named any more must mark it too and
	// have it logged anew, as any other page. A page that is not left writable must be logged
	// as always, so that a log may leave as few as it likes.
	//
	// It returns false where it leaves no page writable, because it cannot, cannot yet,
	// or has no such block; it must then have forgotten all pages that were named
	// before. StopDirtyLog must forget them too. It is called from the goroutine that
	// calls ReadDirty, with a bitmap like that one's, which stays the caller's. The
	// guest may run.
	KeepDirty(block string, pages []uint64) bool
}
