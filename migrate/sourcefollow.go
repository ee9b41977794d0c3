package migrate

import (
	"fmt"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// follow sends memory after the guest, until the destination has it: what was asked for at
// once, and the rest while little enough is on its way.
func (s *Source) follow(x *exchange) error {
	reg, w := s.cfg.State, x.w
	s.course.at(StatusPostcopy)
	for done := false; !done; {
		asked := s.cfg.Memory.Requested()
		if !asked {
			room, wait := x.pace.room(time.Now())
			if !room {
				var look <-chan time.Time
				if wait {
					look = x.look()
				}
				select {
				case <-x.kick:
				case <-look:
					x.looks = false
				case <-x.done:
					return x.cause(x.broken())
				}
				continue
			}
		}
		before := w.Transferred()
		var err error
		if done, err = reg.SaveIterate(w); err == nil && !asked {
			if value, due := x.pace.sent(w.Transferred()-before, time.Now()); due {
				vmstate.PutCommand(w, vmstate.Ping(value))
			}
		}
		if err == nil {
			err = w.Flush()
		}
		s.moved(w)
		if asked {
			x.pace.answer(time.Now())
		}
		if err == nil {
			err = x.broken()
		}
		if err != nil {
			return x.cause(err)
		}
	}
	if err := reg.SaveCompletePostcopy(w); err != nil {
		return x.cause(err)
	}
	s.moved(w)
	<-x.done
	return x.err
}

// recover takes up postcopy on another connection.
func (s *Source) recover(x *exchange) error {
	if err := s.cfg.State.ResumePrepare(); err != nil {
		return x.cause(err)
	}
	err := s.cfg.Memory.Blocks(func(name string, _ uint64) error {
		vmstate.PutCommand(x.w, vmstate.RecvBitmap(name))
		if err := x.w.Flush(); err != nil {
			return err
		}
		select {
		case m := <-x.bitmaps:
			if m.Block != name {
				return fmt.Errorf("migrate: %v of block %q, want %q", m.Type, m.Block, name)
			}
			return s.cfg.Memory.Resume(name, m.Bitmap)
		case <-x.done:
			return x.broken()
		}
	})
	if err != nil {
		return x.cause(err)
	}
	vmstate.PutCommand(x.w, vmstate.PostcopyResume())
	if err := x.w.Flush(); err != nil {
		return x.cause(err)
	}
	select {
	case <-x.ack:
	case <-x.done:
		return x.broken()
	}
	s.taken.Store(true) // its PONG may have been lost with the connection before
	return s.follow(x)
}
