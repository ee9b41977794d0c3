package protect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// When a link is lost for a moment, and the primary goes on, the secondary waits for it
// with what it has of its memory, and tells it in its answer which checkpoint of which
// session that is. A primary that was in that session, and has had the dirty log on since,
// knows which pages the secondary lacks, and sends no others. See package ram for why that
// is exact whatever was under way when the link was lost.
//
// A host drops what it has kept for that as soon as it leaves the part that it had in
// that session: a primary may seek its secondary meanwhile, a secondary may wait for a
// primary, and neither may do anything else.

// A position is a checkpoint of a session. The token of its pair names the session: it
// is random, and never used again.
type position struct {
	Session string `json:"session"`
	Epoch   uint64 `json:"epoch"`
	// Lacks says that a list comes first over the session's connection: of pages that the
	// secondary's guest has written, and has no copy of.
	Lacks bool `json:"lacks,omitempty"`
}

// A base records, on a primary, which checkpoint's memory its secondary holds.
type base struct {
	saver  *ram.Saver
	blocks []ram.Block // the blocks that saver saves
	at     position    // the secondary holds that, or a later checkpoint of its session
	last   string      // or any checkpoint of that session, the last that was begun

	unheard int // lists of written pages that did not come, one after the other
}

// fits reports whether a secondary that holds p lacks what the base knows, and nothing
// else.
func (b *base) fits(p *position, now []ram.Block) bool {
	if b == nil || p == nil || !b.saver.Resumable() || !slices.EqualFunc(b.blocks, now, sameBlock) {
		return false
	}
	if p.Session == b.at.Session {
		return p.Epoch >= b.at.Epoch
	}
	return p.Session == b.last
}

// worth reports whether the secondary has room for what it lacks. One that keeps no copy
// stages it, besides the guest's memory, where a session that sends all needs no more
// than that memory.
func (b *base) worth(p *position, there *offer) bool {
	if !p.Lacks {
		return true
	}
	var most uint64
	for _, b := range b.blocks {
		most += uint64(len(b.Host)) / resumedShare
	}
	if there != nil && there.Staged > 0 {
		most = min(most, there.Staged)
	}
	return b.saver.Lacking() <= most && b.saver.Resumable()
}

// resumedShare bounds what a secondary without a copy is sent when it goes on from the memory
// that it has: one part in so many of the guest's memory.
const resumedShare = 8

func sameBlock(a, b ram.Block) bool {
	return a.Name == b.Name && a.Used == b.Used && len(a.Host) == len(b.Host) && (len(a.Host) == 0 || &a.Host[0] == &b.Host[0])
}

// confirm says that the secondary has committed a checkpoint.
func (b *base) confirm(session string, epoch uint64) {
	if b == nil {
		return // a session of a test
	}
	b.saver.Confirm()
	b.at = position{Session: session, Epoch: epoch}
}

// takeBase returns the saver of a session: that of the last one, if it goes on from
// there, as connect has agreed.
func (j *Job) takeBase(p *peer) *ram.Saver {
	if p.resumes != nil && j.base.saver.Resume() {
		j.base.at, j.base.last = *p.resumes, p.token
		return j.base.saver
	}
	j.dropBase()
	blocks := j.cfg.Guest.Blocks()
	j.base = &base{saver: ram.NewSaver(blocks, j.cfg.Guest, j.cfg.Session.saver()), blocks: slices.Clone(blocks), last: p.token}
	return j.base.saver
}

func (j *Job) dropBase() {
	if j.base != nil {
		j.base.saver.Forget()
		j.base = nil
	}
}

// keepMemory drops what a host in this state has no use for.
func (j *Job) keepMemory(s State) {
	if s != Alone {
		j.dropBase()
	}
	if s != Waiting {
		j.dropCopy()
	}
}

// resumeCopy reports whether this host can follow as the two have agreed.
func (j *Job) resumeCopy(p *peer) bool {
	j.mu.Lock()
	holds := j.holds
	j.mu.Unlock()
	return p.resumes == nil || holds != nil && *holds == *p.resumes && j.copy.Resumable()
}

// takeCopy returns the cache of a session: that of the last one, if it goes on from there.
func (j *Job) takeCopy(p *peer) (*ram.Cache, error) {
	if p.resumes != nil && j.copy.Resume() {
		cache := j.copy
		j.setCopy(nil, nil)
		return cache, nil
	}
	j.dropCopy()
	return j.newCopy()
}

// keepCopy keeps the memory of a session that has ended, if another can go on from it.
// Its guest must be paused, and stay so.
func (j *Job) keepCopy(s *session, err error) {
	var at position
	if s.peer.resumes != nil {
		at = *s.peer.resumes
	}
	if epoch, whole := s.committed(); whole {
		at = position{Session: s.peer.token, Epoch: epoch}
	}
	var leaves bool
	s.peer.get(func() { leaves = s.peer.leaves })
	if at.Session == "" || leaves || tookOverHere(err) || errors.Is(err, failover.ErrTorn) || spoilt(err) {
		s.cache.Close()
		return
	}
	s.cache.Discard()
	if !s.cache.Resumable() {
		s.cache.Close()
		return
	}
	at.Lacks = !s.cache.KeepsCopy()
	j.setCopy(s.cache, &at)
}

// spoilt reports whether a session has ended because of what the stream of its memory
// contained, or because this host failed to load that, and not because the link ended:
// another session that goes on from there would end in the same way.
func spoilt(err error) bool {
	var memory *ram.Error
	var stream *qemufile.Error
	return errors.As(err, &memory) && (!errors.As(memory, &stream) || errors.Is(stream, qemufile.ErrTooLong))
}

func (j *Job) setCopy(c *ram.Cache, at *position) {
	j.copy = c
	j.mu.Lock()
	defer j.mu.Unlock()
	j.holds = at
}

func (j *Job) dropCopy() {
	if j.copy != nil {
		j.copy.Close()
	}
	j.setCopy(nil, nil)
}

// tellWritten tells the primary, where no copy is kept here, what the guest here has
// written, while this host waits for a primary: the length of the list as 32 bits, and
// the list.
func (j *Job) tellWritten(ctx context.Context, s *session) error {
	if s.peer.resumes == nil || !s.peer.resumes.Lacks {
		return nil
	}
	var list written
	w := qemufile.NewWriter(&list)
	if err := errors.Join(s.cache.SaveDirty(w), w.Flush()); err != nil {
		return err
	}
	act, end := j.while(ctx, Waiting)
	defer end()
	defer wait.AtEnd(act, func() { s.wire.Close() })()
	s.wire.SetWriteDeadline(time.Now().Add(j.cfg.PeerTimeout))
	defer s.wire.SetWriteDeadline(time.Time{})
	_, err := s.wire.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(list))), list...))
	return err
}

// written is the message with a list of written pages, while it is composed.
type written []byte

func (b *written) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

// unheardMost is how often a secondary may say that a list comes, and send none.
const unheardMost = 3

// hearWritten reads what tellWritten has written, while this host seeks a secondary. After a list
// that is malformed the next session sends all of the memory. After a link that was lost
// meanwhile it does not, unless the link is lost each time.
func (j *Job) hearWritten(ctx context.Context, s *session) error {
	if s.peer.resumes == nil || !s.peer.resumes.Lacks {
		return nil
	}
	act, end := j.while(ctx, Alone)
	defer end()
	defer wait.AtEnd(act, func() { s.wire.Close() })()
	s.wire.SetReadDeadline(time.Now().Add(j.cfg.PeerTimeout))
	defer s.wire.SetReadDeadline(time.Time{})
	err := s.base.readWritten(s.wire)
	if err == nil {
		s.base.unheard = 0
		return nil
	}
	s.base.unheard++
	if errors.Is(err, ram.ErrDirtyList) || errors.Is(err, ram.ErrUnknownBlock) || s.base.unheard == unheardMost {
		j.dropBase() // or the secondary, which has said that it is to come, may say so for ever
	}
	return err
}

// readWritten reads a list of pages, in front of which is its length, and has those pages sent.
func (b *base) readWritten(from io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return err
	}
	n, most := int64(binary.BigEndian.Uint32(head[:])), int64(1)
	for _, b := range b.blocks {
		most += int64(1 + len(b.Name) + 4 + 12*(len(b.Host)/ram.PageSize/64+1))
	}
	if n > most {
		return fmt.Errorf("protect: %w: %d bytes, at most %d", ram.ErrDirtyList, n, most)
	}
	r := qemufile.NewReader(io.LimitReader(from, n))
	err := b.saver.LoadDirty(r)
	if err == nil && r.Offset() < n {
		err = fmt.Errorf("protect: %w: it is %d bytes too long", ram.ErrDirtyList, n-r.Offset())
	}
	return err
}
