package compare_test

import (
	"math/rand/v2"
	"testing"
)

// A script is the input of a fuzz target that makes choices: each takes one byte of it.

// addScripts adds random scripts of a length to the corpus of f. Targets with different streams
// get different ones.
func addScripts(f *testing.F, stream uint64, length int) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, stream))
		b := make([]byte, length)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
}

// chooserOf returns a function that chooses one of n by the next byte of a script, which it takes
// away. Where there is no choice it takes none, and at the end of the script it chooses the first.
func chooserOf(script *[]byte) func(n int) int {
	return func(n int) int {
		if len(*script) == 0 || n < 2 {
			return 0
		}
		b := (*script)[0]
		*script = (*script)[1:]
		return int(b) % n
	}
}
