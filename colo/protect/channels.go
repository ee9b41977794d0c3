package protect

import (
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/lanes"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// chMemory begins the names of the channels of a guest's memory, and their numbers end
// them, from 0 on.
const chMemory = "memory:"

// maxChannels bounds the channels of a guest's memory, as colo.Channels does.
const maxChannels = 255

// Channels says over how many connections of their own, beside that of the session, the
// memory of checkpoints goes, and how. See colo.Channels for what crosses them, and for
// what happens where one breaks: the session ends, and the guest goes on as after any link
// that is lost.
//
// The two hosts agree on the smaller of their Counts, in the hello; a host of an older
// version has none. With 0 all memory goes over the session's connection. The first copy
// of the memory does in any case.
type Channels struct {
	// Count is how many this host can have, on either side: 0 to 255.
	Count int
	// Method is how this host compresses the pages as a primary. A secondary that does
	// not know it gets all memory over the session's connection.
	Method multifd.Method
	// Compressor makes the compressors of a primary, and Decoder the decoders of a
	// secondary; see colo.Channels. Nil: those of zlib.
	Compressor func(multifd.Method) (multifd.Compressor, error)
	Decoder    func(multifd.Method) (multifd.Decoder, error)
}

func (c *Channels) check() error {
	if c.Count < 0 || c.Count > maxChannels {
		return fmt.Errorf("protect: %d Channels, at most %d", c.Count, maxChannels)
	}
	if c.Count == 0 || c.Method == multifd.None {
		return nil
	}
	compressor := c.Compressor
	if compressor == nil {
		compressor = multifd.CompressZlib
	}
	z, err := compressor(c.Method)
	if err != nil {
		return fmt.Errorf("protect: Channels: %w", err)
	}
	lanes.CloseCompressor(z)
	return nil
}

// agree returns how many channels of memory this host uses with a host that has offered o. o
// comes from a hello, and so may contain anything.
func (c *Channels) agree(o *offer) int {
	if o == nil {
		return 0
	}
	return max(0, min(c.Count, o.Channels))
}

// ofMemory returns the names of n channels.
func ofMemory(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = chMemory + strconv.Itoa(i)
	}
	return names
}

// leadingChannels is channelsOf for a primary. If no compressor can be made any more,
// although New could make one, the memory goes over the session's connection.
func (j *Job) leadingChannels(p *peer) colo.Channels {
	if err := j.cfg.Channels.check(); err != nil {
		j.note(err)
		return colo.Channels{}
	}
	return j.channelsOf(p)
}

// channelsOf returns the channels of a session. Their connections have come with the pair: nobody
// else has its token.
func (j *Job) channelsOf(p *peer) colo.Channels {
	c := &j.cfg.Channels
	id := sha256.Sum256([]byte(p.token))
	of := colo.Channels{ID: [16]byte(id[:16]), Method: c.Method, Compressor: c.Compressor, Decoder: c.Decoder}
	for _, name := range ofMemory(p.channels) {
		of.Conns = append(of.Conns, p.more[name])
	}
	return of
}
