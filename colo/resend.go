package colo

import (
	"context"

	"github.com/gocolo/lockstep/qemufile"
)

// A secondary need not keep a copy of the primary's memory to roll its guest back
// to: it can tell the primary which pages its guest wrote, and the primary sends
// them again with the checkpoint. The two guests do much the same, so most of
// these pages come anyway. Only peers of this library know of it. The primary
// says in its announcement that it does, and the secondary says [DirtyPages] in
// front of each CheckpointReply.

// CopylessStage is a Stage that need not keep a copy of the primary's memory (a
// ram.Cache with CacheConfig.StagedOnly). Its methods are called from the
// goroutine in Run. If it has a method Resent() besides, that is called before the
// first Flush of a session with a primary that sends again what is written here; a
// ram.Cache that does not hear of it keeps a copy.
type CopylessStage interface {
	Stage
	// KeepsCopy reports whether it keeps one in this session. SaveDirty is then
	// not called.
	KeepsCopy() bool
	// KeepCopy is called before the first Flush of a session with a primary that
	// does not send again what is written here: from then on there must be a
	// copy. Its error ends the session.
	KeepCopy() error
	// SaveDirty writes which pages the guest wrote since the last Flush, in the
	// form that the primary's Resender reads. The guest is paused, until Flush.
	SaveDirty(w *qemufile.Writer) error
	// CheckStaged is called when the memory of a checkpoint has been staged, and
	// reports what is missing of it. That is the last moment at which a primary
	// may be found to have sent too little: Flush is part of the commit.
	CheckStaged() error
}

// Resender is a PrimaryConfig.RAM that can be told which pages the secondary
// wrote (ram.Saver). LoadDirty is called before the memory of a checkpoint is
// sent or captured, and must have the pages that it reads of sent with it,
// whatever they hold. What it reads is the peer's and not to be trusted.
type Resender interface {
	LoadDirty(r *qemufile.Reader) error
}

// expectReply waits for CheckpointReply, and for DirtyPages in front of it.
func (p *Primary) expectReply(context.Context) error {
	return p.working(0, func() error {
		got, at, err := p.link.next()
		if err == nil && got == DirtyPages && p.ours && p.resender != nil {
			p.link.trace("<", DirtyPages, 0)
			if err := p.resender.LoadDirty(p.link.R); err != nil {
				return err
			}
			got, at, err = p.link.next()
		}
		if err != nil {
			return err
		}
		return p.link.is(got, CheckpointReply, at)
	})
}

// agreeOnCopy has the stage keep a copy where the primary does not send again
// what is written here. A stage that is not told otherwise (Resent) keeps one of
// its own accord: it may be behind a Stage that knows nothing of this.
func (s *Secondary) agreeOnCopy(resends bool) error {
	if st, ok := s.cfg.RAM.(CopylessStage); ok {
		if !resends && !st.KeepsCopy() {
			return st.KeepCopy()
		}
		if r, ok := st.(interface{ Resent() }); ok && resends {
			r.Resent()
		}
		s.tells = st
	}
	return nil
}

// tellDirty queues the pages that the guest, which is paused, wrote.
func (s *Secondary) tellDirty() error {
	if s.tells == nil || s.tells.KeepsCopy() {
		return nil
	}
	if err := s.link.Send(DirtyPages); err != nil {
		return err
	}
	return s.tells.SaveDirty(s.link.W)
}
