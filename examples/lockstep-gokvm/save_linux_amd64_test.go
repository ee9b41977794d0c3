package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	flatguest "github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// shutFile is a guest's file of which nothing can be read for a while but what the first
// asks of its memory bring, and after that what err says.
type shutFile struct {
	io.ReaderAt
	begun chan struct{} // closed when all but the memory has been read
	open  chan struct{}
	few   chan struct{} // so many pieces can be read before open
	err   error
}

func (f *shutFile) ReadAt(p []byte, at int64) (int, error) {
	select {
	case <-f.begun:
	default:
		return f.ReaderAt.ReadAt(p, at)
	}
	if len(p) <= 64<<10 { // a vCPU waits for it
		select {
		case <-f.few:
			return f.ReaderAt.ReadAt(p, at)
		default:
		}
	}
	<-f.open
	if f.err != nil {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, at)
}

// A guest on KVM runs before its memory has been read, and is the one that was saved. One
// whose file breaks stands still, though its vCPU waits for a page, and the program ends.
func TestAGuestOnKVMRunsFromItsFile(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	needPostcopy(t)
	for name, broken := range map[string]error{"": nil, "which breaks": syscall.EIO} {
		t.Run(name, func(t *testing.T) {
			w := &flatWorld{t: t, params: flatguest.Params{VCPUs: 1, Pages: 1024, Touch: 8, Seed: 5}}
			file := filepath.Join(t.TempDir(), "guest")
			first := w.run(modePrimary, "-kernel", "none", "-peer", "127.0.0.1:1", "-start", "-save", file, "-term", "100ms")
			w.emits(0, 100)
			w.until("the console", func() bool { _, order, _ := first.console.mode(); return order != nil })
			_, order, _ := first.console.mode()
			order('w')
			if err := w.end(first); err != nil {
				t.Fatal(err)
			}
			f := &shutFile{begun: make(chan struct{}), open: make(chan struct{}), few: make(chan struct{}, 3), err: broken}
			for range cap(f.few) {
				f.few <- struct{}{}
			}
			w.memory = func(r *os.File) io.ReaderAt { f.ReaderAt = r; return f }
			w.later = func() { close(f.begun) }
			next := w.run(modePrimary, "-resume", file, "-lazy", "-peer", "127.0.0.1:1", "-start", "-term", "100ms")
			w.until("touches of its memory", func() bool { return len(f.few) == 0 })
			if strings.Contains(w.told(), phase("loaded")) {
				t.Error("its memory has been read")
			}
			// The guest runs: what it has cost is what it has touched, three pieces.
			w.mu.Lock()
			touched, err := mapping.Resident(w.empty)
			w.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if pieces := 3 * 64 << 10 / kvm.PageSize; touched == 0 || touched > pieces {
				t.Errorf("%d pages of %d bytes of memory are there, want at most %d", touched, len(w.empty), pieces)
			}
			close(f.open)
			if broken != nil {
				if err := w.end(next); err == nil || !strings.Contains(err.Error(), broken.Error()) {
					t.Errorf("%v", err)
				}
				w.check(t)
				return
			}
			w.until("all memory", func() bool { return strings.Contains(next.said.String(), phase("loaded")) })
			w.emits(1, 1000)
			next.stop()
			if err := w.end(next); err != nil {
				t.Error(err)
			}
			w.check(t)
		})
	}
}
