package colo

import (
	"context"

	"github.com/gocolo/lockstep/qemufile"
)

// A secondary need not keep a copy of the primary's memory to roll its guest back
// to: it can tell the primary which pages its guest wrote, and the primary sends
// them again with the checkpoint. The two guests do much the same, so most of
// these pages come anyway. Only two peers of this library can do so. The primary
// says in its announcement that it sends them again, and the secondary says
// [DirtyPages] in front of each CheckpointReply.

// CopylessStage is a Stage that need not keep a copy of the primary's memory (a
// ram.Cache with CacheConfig.StagedOnly). Its methods are called from the
// goroutine in Run. If it also has a method Resent(), that is called before the first
// Flush of a session whose primary sends these pages again; a ram.Cache on which it was
// not called keeps a copy.
type CopylessStage interface {
	Stage
	// KeepsCopy reports whether the stage keeps a copy in this session. SaveDirty is
	// then not called.
	KeepsCopy() bool
	// KeepCopy is called before the first Flush of a session whose primary does not
	// send these pages again: from then on the stage must keep a copy. Its error ends
	// the session.
	KeepCopy() error
	// SaveDirty writes which pages the guest wrote since the last Flush, in the
	// form that the primary's Resender reads. The guest is paused, until Flush.
	SaveDirty(w *qemufile.Writer) error
	// CheckStaged is called when the memory of a checkpoint has been staged, and
	// returns an error if pages are missing. A primary that sent too little must be found
	// out now: Flush, which comes next, is part of the commit and may not fail.
	CheckStaged() error
}

// Resender is a PrimaryConfig.RAM that can be told which pages the secondary
// wrote (ram.Saver). LoadDirty is called before the memory of a checkpoint is
// sent or captured. It reads a list of pages, and the checkpoint must then carry these
// pages, whatever they hold. The list comes from the peer and is not to be trusted.
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

// agreeOnCopy calls Resent where the primary sends again what the guest wrote here, and
// KeepCopy where it does not. A ram.Cache on which neither is called keeps a copy: it may
// stand behind a Stage that does not forward these methods.
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
