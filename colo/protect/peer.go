package protect

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/gocolo/lockstep/internal/wait"
)

// A peer is the other side of one session: its connections, and what was said on
// the control connection. It belongs to one session and ends with it.
type peer struct {
	host       string
	generation uint64 // of the session: what the primary held when it began
	token      string // of the pair; no connection of another session has it

	// heard, on a secondary, is of a primary that holds generation by an operator's word: the
	// last generation of which the arbiter had heard when the session began, as far as the
	// primary knew. 0: the primary was granted generation.
	heard uint64

	arbiter string // what decides there who goes on; "": the peer has not said so

	growing []string         // names of the disks of the other side that can become longer while the guest is protected
	sizes   map[string]int64 // how long its disks were when the session began, in bytes

	resumes *position // the checkpoint that the secondary's memory holds, where the session sends only what has changed since; nil: all of it is sent

	heedsFrom bool // on a primary: the secondary's arbiter heeds failover.Claim.From

	session, beat net.Conn
	more          map[string]net.Conn // of disks, networks and memory, by channel
	channels      int                 // how many connections of more carry memory

	write chan struct{} // capacity one: held while control is written, which may wait

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when something below changes
	ends     []*until      // contexts that may end when something below changes
	control  net.Conn      // to write to it, write is held as well
	again    bool          // it is not the one with which the session began
	closed   bool          // there will be no other control connection
	ended    bool          // it has said that the session ends on purpose
	leaves   bool          // ended was said in a note, sayEnd: a primary then keeps nothing to go on from
	verb     string        // the verb that has ended it, as the peer says; it may be any string
	departs  bool          // it has said that its Run is about to end
	farewell bool          // it has heard that the Run here is about to end
	reason   string        // why the session ends, in the peer's words
	complete bool          // the peer says that the guest has ended
	why      string        // why it has ended the session on its own, in its words; "": it has not said so
	verdict  string        // of a secondary that was told to go on: sayRuns or sayCannot
	decided  time.Time     // when that was heard
	begins   bool          // on a secondary: the disks are synchronised
	lost     bool          // the heartbeat says so
	silent   bool          // lost, though the connection of the heartbeat had not ended
	parting  bool          // this side has said its last word: that the session ends on purpose, or that it runs the guest
	parted   bool          // the other side has heard that last word
	gone     bool          // nothing more will be heard from there
	mute     bool          // nothing was heard from there for longer than it takes to ask for a promise and be answered
	promised bool          // on a primary: the secondary has promised not to claim the guest for a while
	pledge   time.Time     // on a secondary: it does not claim the guest before
	unused   uint64        // on a primary: the generation that the secondary may have been granted, and will not use; 0: it has not said so
	released bool          // on a secondary: the primary has released the guest for it, or given it up for it (note.From)
	goneOn   error         // on a primary: that its secondary has gone on with the guest; nil: nobody has said so
	grown    *note         // on a primary: what the secondary has said last of a disk that is to become longer
	reaches  *note         // on a primary: what its secondary has said last of whether the arbiter answers it
	gaveBack bool          // on a secondary: the arbiter says that the primary has released it, for whomever
}

func newPeer(h hello) *peer {
	p := &peer{host: h.Host, generation: h.Generation, token: h.Token, heard: h.Heard, arbiter: h.Arbiter, heedsFrom: h.HeedsFrom, more: map[string]net.Conn{}, changed: make(chan struct{}), write: make(chan struct{}, 1)}
	if o := h.Offer; o != nil {
		p.sizes = map[string]int64{}
		for _, d := range o.Disks {
			p.sizes[d.Name] = int64(min(d.Size, math.MaxInt64))
		}
		for _, g := range o.Growing {
			p.growing = append(p.growing, g.Name)
		}
	}
	return p
}

func (p *peer) close() {
	var control net.Conn
	p.get(func() { control, p.closed = p.control, true })
	for _, c := range []net.Conn{control, p.session, p.beat} {
		if c != nil {
			c.Close()
		}
	}
	for _, c := range p.more {
		c.Close()
	}
}

func (p *peer) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
	for _, u := range p.ends {
		u.look()
	}
}

// get reads what is known.
func (p *peer) get(read func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	read()
}

// await waits until done, which is called with p.mu held, or until ctx ends.
func (p *peer) await(ctx context.Context, done func() bool) error {
	for {
		p.mu.Lock()
		ok, changed := done(), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// notUsed returns the generation after this session's, if the secondary has said that it
// does not use it.
func (p *peer) notUsed() (generation uint64) {
	p.get(func() {
		if p.unused == p.generation+1 {
			generation = p.unused
		}
	})
	return generation
}

// An until is a context that ends when done, which is called with p.mu held, says so.
type until struct {
	done func() bool
	end  context.CancelCauseFunc
}

// look ends the context if done says so.
func (u *until) look() {
	if u.done() {
		u.end(errEnded)
	}
}

// until returns a context that ends when done, which is called with p.mu held, says so,
// and what ends it and is called in any case. No goroutine waits for it: whoever changes what is
// known ends it.
func (p *peer) until(ctx context.Context, done func() bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	u := &until{done, cancel}
	p.get(func() {
		p.ends = append(p.ends, u)
		u.look()
	})
	return ctx, func() {
		cancel(nil)
		p.get(func() { p.ends = slices.DeleteFunc(p.ends, func(other *until) bool { return other == u }) })
	}
}

// answer says n and waits for the note that answers it, which has its number, for as long as patience. last
// returns the note of that kind that has come last, and whether none will come any more; p.mu is held. It
// returns nil if there is none, if none will come, or if ctx ends.
func (p *peer) answer(ctx context.Context, n note, patience time.Duration, last func() (a *note, over bool)) (answer *note) {
	p.say(n)
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p.await(soon, func() bool {
		a, over := last()
		if a != nil && a.Seq == n.Seq {
			answer = a
		}
		return answer != nil || over
	})
	return answer
}

// say sends a note. Whoever does not take it within sayTime is not there.
func (p *peer) say(n note) error {
	p.write <- struct{}{}
	defer func() { <-p.write }()
	var control net.Conn
	p.get(func() { control = p.control })
	control.SetWriteDeadline(time.Now().Add(sayTime))
	if n.Say == sayEnd || n.Say == sayRuns {
		p.set(func() { p.parting = true })
	}
	return writeNote(control, n)
}

// part waits, before the connections are closed, until the other side has heard this side's last
// word, if there was one: a connection that is closed may take along what is still on its way. It
// waits no longer than patience, and not for a side from which nothing more can be heard.
func (p *peer) part(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.await(ctx, func() bool { return !p.parting || p.parted || p.gone })
}

const sayTime = 2 * time.Second

// hear reads the control connection until it ends, and returns which it was. on is called with
// each note, after what it says of the peer has been noted here. In each session questions for a
// promise are asked or answered all the time: after the first note, silent is called when there
// was none for a while.
func (p *peer) hear(on func(note), while time.Duration, silent func()) (control net.Conn) {
	p.get(func() {
		if control = p.control; p.again {
			control.SetReadDeadline(time.Now().Add(while))
		}
	})
	defer p.set(func() {
		if p.control == control {
			p.gone = true
		}
	})
	from := bufio.NewReaderSize(control, 512) // most notes are read at once
	for {
		if _, err := from.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) && p.hushed(control) {
			silent()
			continue
		}
		n, err := readNote(from)
		if err != nil {
			return control // the heartbeat says what that means
		}
		p.get(func() {
			if p.control == control {
				p.mute = false
			}
			if !p.lost {
				control.SetReadDeadline(time.Now().Add(max(while, min(2*time.Duration(n.TermNS), 2*maxPledge))))
			}
		})
		switch n.Say {
		case sayEnd:
			p.set(func() {
				p.ended, p.leaves, p.reason, p.complete, p.unused = true, true, n.Reason, n.Completed, n.Seq
				p.verb = n.Verb
			})
		case sayLeaves:
			p.set(func() { p.departs = true })
		case sayFarewell:
			p.set(func() { p.farewell = true })
		case sayHeard:
			p.set(func() { p.parted = true })
		case sayWhy:
			p.set(func() { p.why = n.Reason })
		case sayGrown:
			p.set(func() { p.grown = &n })
		case sayReaches:
			p.set(func() { p.reaches = &n })
		case sayDisks:
			p.set(func() { p.begins = true })
		case sayRuns, sayCannot:
			p.set(func() {
				p.verdict, p.decided, p.reason = n.Say, time.Now(), n.Reason
				if n.Say == sayCannot {
					p.unused = n.Seq
				}
			})
		}
		on(n)
	}
}

// hushed notes that nothing was heard for a while, and lets the next note take any time. It
// returns false, and nothing more is read, if the peer is lost or has another control connection.
func (p *peer) hushed(control net.Conn) (ok bool) {
	p.set(func() {
		if ok = !p.lost && p.control == control; ok {
			p.mute = true
			control.SetReadDeadline(time.Time{})
		}
	})
	return ok
}

// beatUntil sends heartbeats and hears the peer's, and returns why the peer is
// lost, or nil when ctx ends.
func (p *peer) beatUntil(ctx context.Context, cfg heartbeat.Config) error {
	err := heartbeat.Watch(ctx, p.beat, cfg)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// promises asks the secondary again and again for its promise. An answer says for how long the
// promise holds, counted from when it was answered; its question is found by its number.
type promises struct {
	mu   sync.Mutex
	seq  uint64             // of the last question; 0: none was sent
	term time.Duration      // that was asked for
	sent [perTerm]time.Time // when the last questions were, each at its number modulo perTerm
}

// perTerm is how many questions are sent in a term. An answer that takes longer than a term
// is ignored.
const perTerm = 4

// ask sends questions until ctx ends.
func (q *promises) ask(ctx context.Context, p *peer, term time.Duration) {
	for {
		p.say(q.next(time.Now(), term)) // where it is not heard, it is asked again
		if wait.For(ctx, term/perTerm) != nil {
			return
		}
	}
}

// next returns the next question, which is sent at that time.
func (q *promises) next(now time.Time, term time.Duration) note {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seq++
	q.sent[q.seq%perTerm], q.term = now, term
	return note{Say: sayAsk, Seq: q.seq, TermNS: int64(term)}
}

// answer returns when the question that n answers was sent, and for how long the
// promise holds: no longer than was asked for, whatever n says.
func (q *promises) answer(n note) (sent time.Time, term time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n.Seq == 0 || n.Seq > q.seq || q.seq-n.Seq >= perTerm || n.TermNS <= 0 {
		return time.Time{}, 0, false // of a question that there was not, or a term ago
	}
	return q.sent[n.Seq%perTerm], min(time.Duration(n.TermNS), q.term), true
}

// A line is a connection among others: the control connection of a peer, which may have another one in
// its place, or one of a Port that has not said yet what it is for. What a caller's Dialer or listener
// returns need not be comparable.
type line struct{ net.Conn }
