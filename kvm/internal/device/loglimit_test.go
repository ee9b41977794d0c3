package device

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// What a guest does over and over is told once a second, with how often it was not.
func TestAGuestCannotFillTheHostsLog(t *testing.T) {
	for name, c := range map[string]struct {
		device func(*board, *slog.Logger) machinery
		parts  []part
	}{
		"it breaks the rules of a ring": {
			func(b *board, log *slog.Logger) machinery {
				return NewRNG(strings.NewReader(""), b.memory(), b.line, log)
			},
			[]part{{testMemory, 1, true}},
		},
		"it breaks the rules of its disk": {
			func(b *board, log *slog.Logger) machinery {
				return NewBlk(&store{data: make([]byte, 512)}, 1, "", b.memory(), b.line, log)
			},
			[]part{{testStatus, 1, true}},
		},
		"it uses a disk that fails": {
			func(b *board, log *slog.Logger) machinery {
				return NewBlk(&store{data: make([]byte, 512), err: errors.New("worn out")}, 1, "", b.memory(), b.line, log)
			},
			[]part{{testHeader, blkHeader, false}, {testStatus, 1, true}},
		},
		"it asks for randomness that there is not": {
			func(b *board, log *slog.Logger) machinery {
				return NewRNG(iotest.ErrReader(errors.New("none")), b.memory(), b.line, log)
			},
			[]part{{testData, 1, true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard(t)
				b.mem[testHeader] = blkSync
				var log bytes.Buffer
				dev := c.device(b, slog.New(slog.NewTextHandler(&log, nil)))
				again := func() {
					dev.Out(regStatus, []byte{0})
					newRing(b, dev, 0, 0x10000).offer(0, c.parts...)
					drain(dev.step)
				}
				for range 100 {
					again()
				}
				if n := strings.Count(log.String(), "\n"); n != 1 {
					t.Errorf("%d records of 100 times, want one", n)
				}
				time.Sleep(seldomApart)
				again()
				again()
				if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "unsaid=99") {
					t.Errorf("%d records a second later: %s", n, log.String())
				}
			})
		})
	}
}
