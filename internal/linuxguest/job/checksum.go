package job

import "math"

// Memory that a pass of Checksum goes over: it is read and written whole.
const (
	words   = 32 << 10 // words of 64 bits
	doubles = 8 << 10
)

// Checksum is a computation over memory whose every pass depends on all passes
// before it: a page that is lost, stale or torn, or a register that is not
// restored, makes each later value wrong. NewChecksum makes one.
type Checksum struct {
	Pass    uint64
	Integer uint64
	Double  uint64 // the bits of a float64

	words   []uint64
	doubles []float64
}

// NewChecksum returns a Checksum before its first pass.
func NewChecksum() *Checksum {
	c := &Checksum{words: make([]uint64, words), doubles: make([]float64, doubles)}
	x := uint64(1)
	for i := range c.words {
		x = step(x)
		c.words[i] = x
	}
	for i := range c.doubles {
		c.doubles[i] = float64(i%97) / 97
	}
	return c
}

// step is Knuth's linear congruential generator (MMIX).
func step(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

// Next makes one pass.
func (c *Checksum) Next() {
	c.Pass++
	sum := c.Integer ^ c.Pass
	for i, w := range c.words {
		sum = step(sum ^ w)
		c.words[i] = w<<13 | w>>51 ^ sum
	}
	c.Integer = sum
	// The logistic map in its chaotic range: the least difference grows.
	var total float64
	for i, v := range c.doubles {
		next := float64(3.9*v) * (1 - v) // converted, so that no compiler fuses it
		if i%64 == 0 {
			// An argument of the integers', so that both must be right.
			next = float64(next+float64(sum>>40)/float64(1<<24)) / 2
		}
		c.doubles[i] = next
		total += next
	}
	c.Double = math.Float64bits(total)
}
