package heartbeat

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// What comes over a heartbeat's connection, however it comes.
func TestEachBeginningOfWhatComesIsJudgedByItself(t *testing.T) {
	for _, c := range []struct {
		name  string
		said  []string // each a write of its own, half an interval after the one before
		want  error
		after time.Duration // of the first
	}{
		{"nothing", nil, ErrLost, timeout},
		{"an empty write", []string{""}, ErrLost, timeout},
		{"two beats at once", []string{"BB"}, ErrLost, timeout},
		{"a thousand beats at once", []string{string(bytesOf(beat, 1000))}, ErrLost, timeout},
		{"a beat after a beat", []string{"B", "B"}, ErrLost, interval/2 + timeout},
		{"a goodbye after a beat", []string{"BG"}, ErrGoodbye, 0},
		{"what follows a goodbye", []string{"GX"}, ErrGoodbye, 0},
		{"something else after a beat", []string{"BX"}, ErrProtocol, 0},
		{"a goodbye after something else", []string{"XG"}, ErrProtocol, 0},
		{"something else, later", []string{"B", "B", "\x00"}, ErrProtocol, interval},
		{"the end of a long read", []string{string(bytesOf(beat, 64)) + "X"}, ErrProtocol, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			go io.Copy(io.Discard, b)
			begin, done := time.Now(), start(t.Context(), a)
			go func() {
				for i, s := range c.said {
					if i > 0 {
						time.Sleep(interval / 2)
					}
					if _, err := b.Write([]byte(s)); err != nil {
						return // it has been judged
					}
				}
			}()
			err := <-done
			if d := time.Since(begin); !errors.Is(err, c.want) || d != c.after {
				t.Errorf("%s: %v after %v, want %v after %v", c.name, err, d, c.want, c.after)
			}
			b.Close()
			synctest.Wait()
		})
	}
}

func bytesOf(b byte, n int) []byte {
	s := make([]byte, n)
	for i := range s {
		s[i] = b
	}
	return s
}

// A byte of which a bit has turned is no beat, and no goodbye: the next one would be of another
// protocol. So is a connection that is cut after any number of beats a loss, and never a goodbye.
func TestABeatOfWhichABitHasTurnedIsNoBeat(t *testing.T) {
	for _, of := range []byte{beat, goodbye} {
		for bit := range 8 {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				go io.Copy(io.Discard, b)
				done := start(t.Context(), a)
				b.Write([]byte{of ^ 1<<bit})
				if err := <-done; !errors.Is(err, ErrProtocol) || errors.Is(err, ErrLost) || errors.Is(err, ErrGoodbye) {
					t.Errorf("%q with bit %d turned: %v", of, bit, err)
				}
				b.Close()
			})
		}
	}
	for beats := range 4 {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			go io.Copy(io.Discard, b)
			done := start(t.Context(), a)
			b.Write(bytesOf(beat, beats))
			b.Close()
			if err := <-done; !errors.Is(err, ErrLost) || errors.Is(err, ErrGoodbye) {
				t.Errorf("cut after %d beats: %v", beats, err)
			}
		})
	}
}
