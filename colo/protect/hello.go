package protect

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/plain"
)

// ErrHello says that what came over a connection does not begin like one of this
// package, or that it is cut or too long.
var ErrHello = errors.New("protect: not a hello")

// A RefusedError says that the other side has refused a connection, and why, in
// its words; or that this side refuses what the other offers.
type RefusedError struct {
	Reason string
	// There says that the other side refused.
	There bool
}

func (e *RefusedError) Error() string {
	if e.There {
		return "protect: the other side refuses: " + e.Reason
	}
	return "protect: refused: " + e.Reason
}

func refuse(format string, args ...any) error {
	return &RefusedError{Reason: fmt.Sprintf(format, args...)}
}

// The channels of a pair, each a connection of its own.
const (
	chControl   = "control"
	chSession   = "session"
	chHeartbeat = "heartbeat"
	chDisk      = "disk:" // and its name
)

const (
	helloMagic   = "LOCKSTEP"
	helloVersion = 1
	maxHello     = 64 << 10
	maxList      = 1024 // memory blocks
	maxNetworks  = 64

	// maxWords bounds how many generations in a row may be by an operator's word.
	maxWords = 1024
	// maxGeneration bounds the generation that a peer may name, so that there is
	// room for the generations after it.
	maxGeneration = 1 << 62
)

// A hello begins a connection, in one direction; its answer comes back in the
// same form. On the wire: the magic, the version as 16 bits, 16 bits of zero, the
// length of what follows as 32 bits, and that many bytes of JSON. All integers are
// big-endian.
type hello struct {
	Channel    string `json:"channel"`
	Guest      string `json:"guest"`
	Generation uint64 `json:"generation"` // of the session that is meant
	Token      string `json:"token,omitempty"`
	Host       string `json:"host"` // the sender's name

	// On the control channel: what must fit.
	Offer *offer `json:"offer,omitempty"`

	// On the control channel: with what the sender decides who goes on; see Config.ArbiterKind. "":
	// the sender is of a version that does not say it.
	Arbiter string `json:"arbiter,omitempty"`

	// Of an answer on the control channel: what the sender's memory is, if it is known to
	// the primary of a session before. On the session channel, of a primary that sends
	// only what that lacks: the same again.
	Holds   *position `json:"holds,omitempty"`
	Resumes *position `json:"resumes,omitempty"`

	// On the control channel: the sender holds the generation by an operator's word, and this is
	// the last of which it knows that its arbiter has heard. 0: it has been granted it.
	Heard uint64 `json:"heard,omitempty"`

	// Of an answer on the control channel: the sender's arbiter heeds failover.Claim.From, so that the
	// primary can hand the guest over without asking its own. false: it does not, or the sender is of a
	// version that knows nothing of it.
	HeedsFrom bool `json:"heeds_from,omitempty"`

	// On the control channel, and of an answer on the channel ask: the token of the session in which
	// the sender has taken the guest over last. "": it has not since its process began.
	TookOver string `json:"took_over,omitempty"`

	// Of an answer on the channel ask: what the job's State is called.
	State string `json:"state,omitempty"`

	// Of an answer on the channel ask, whose question has the token of a session: the sender has
	// followed in that, which is over, and never goes on from it.
	Over bool `json:"over,omitempty"`

	// Of an answer: why the connection is refused. "": it is welcome.
	Refused string `json:"refused,omitempty"`
}

// An offer describes the machine of one side, for the other to compare.
type offer struct {
	Machine  string   `json:"machine"`
	Memory   []part   `json:"memory"`
	Disks    []part   `json:"disks,omitempty"`
	Growing  []grower `json:"growing,omitempty"` // those of Disks that can become longer
	Devices  []device `json:"devices,omitempty"`
	Networks []link   `json:"networks,omitempty"` // those that have a connection of their own
	Extra    []byte   `json:"extra,omitempty"`    // opaque; see Config.Offer
	Resends  bool     `json:"resends,omitempty"`  // as a primary: what the secondary's guest has written
	Channels int      `json:"channels,omitempty"` // of memory, that the sender can have
	Staged   uint64   `json:"staged,omitempty"`   // as a secondary without a copy: what it stages at most, in bytes; 0: no bound
}

// A part is a block of memory, or a disk.
type part struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
}

// A grower is a disk that the sender's Job.Grow, or that of the other side, can make longer.
type grower struct {
	Name string `json:"name"`
	ID   string `json:"id,omitempty"` // of the guest's disk, the same for all copies; "": a blank copy
}

// A link is a network that has a connection of its own, and on what terms.
type link struct {
	Name  string `json:"name"`
	Terms string `json:"terms"`
}

// fits compares what two sides have. An error is a *RefusedError that names the
// first thing that differs.
func (o *offer) fits(other *offer) error {
	if other == nil {
		return refuse("the other side does not say what it has")
	}
	if o.Machine != other.Machine {
		return refuse("the machine here is %q, there %q", o.Machine, other.Machine)
	}
	if err := fit("memory block", o.Memory, other.Memory, func(string) bool { return false }); err != nil {
		return err
	}
	if err := fit("disk", o.Disks, other.Disks, func(name string) bool { return oneDisk(o, other, name) }); err != nil {
		return err
	}
	return fitLinks(o.Networks, other.Networks)
}

func fitLinks(here, there []link) error {
	for _, h := range here {
		i := slices.IndexFunc(there, func(l link) bool { return l.Name == h.Name })
		if i < 0 {
			return refuse("the network %q is not there on the other side", h.Name)
		}
		if there[i].Terms != h.Terms {
			return refuse("the network %q here is %q, there %q", h.Name, h.Terms, there[i].Terms)
		}
	}
	if len(there) > len(here) {
		return refuse("the other side has %d networks with a connection of their own, this one %d", len(there), len(here))
	}
	return nil
}

// fit compares parts by name. may reports whether one of them may have another size there.
func fit(what string, here, there []part, may func(name string) bool) error {
	for _, h := range here {
		i := slices.IndexFunc(there, func(p part) bool { return p.Name == h.Name })
		if i < 0 {
			return refuse("the %s %q is not there on the other side", what, h.Name)
		}
		if there[i].Size != h.Size && !may(h.Name) {
			return refuse("the %s %q has %d bytes here, %d there", what, h.Name, h.Size, there[i].Size)
		}
	}
	for _, p := range there {
		if !slices.ContainsFunc(here, func(h part) bool { return p.Name == h.Name }) {
			return refuse("the other side's %s %q is not here", what, p.Name)
		}
	}
	return nil
}

func writeHello(w io.Writer, h hello) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(body) > maxHello {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrHello, len(body), maxHello)
	}
	b := make([]byte, 0, 16+len(body))
	b = append(b, helloMagic...)
	b = binary.BigEndian.AppendUint16(b, helloVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

// A versionError says that a hello is of another version. It matches ErrHello.
type versionError struct{ there uint16 }

func (e *versionError) Error() string {
	return fmt.Sprintf("%v: version %d, this is version %d", ErrHello, e.there, helloVersion)
}

func (e *versionError) Unwrap() error { return ErrHello }

// readHello reads a hello and not a byte more. Memory grows with what has come.
func readHello(r io.Reader) (hello, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hello{}, fmt.Errorf("%w: %w", ErrHello, err)
	}
	if string(head[:8]) != helloMagic {
		return hello{}, ErrHello
	}
	if v := binary.BigEndian.Uint16(head[8:]); v != helloVersion {
		return hello{}, &versionError{v}
	}
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxHello || head[10] != 0 || head[11] != 0 {
		return hello{}, fmt.Errorf("%w: %d bytes announced, at most %d", ErrHello, n, maxHello)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return hello{}, fmt.Errorf("%w: %w", ErrHello, err)
	}
	var h hello
	if err := json.Unmarshal(body, &h); err != nil {
		return hello{}, fmt.Errorf("%w: %w", ErrHello, err)
	}
	h.Refused = plain.Text(h.Refused, maxNote)
	return h, h.check()
}

func (h *hello) check() error {
	for _, s := range []string{h.Channel, h.Guest, h.Token, h.Host, h.TookOver, h.State, h.Arbiter} {
		if len(s) > failover.MaxName {
			return fmt.Errorf("%w: a name of %d bytes", ErrHello, len(s))
		}
	}
	for _, p := range []*position{h.Holds, h.Resumes} {
		if p != nil && len(p.Session) > failover.MaxName {
			return fmt.Errorf("%w: the name of a session of %d bytes", ErrHello, len(p.Session))
		}
	}
	for _, s := range []string{h.Guest, h.Host, h.Arbiter} {
		if !plain.Is(s) {
			return fmt.Errorf("%w: a name that cannot be printed, %q", ErrHello, s)
		}
	}
	if h.Generation > maxGeneration {
		return fmt.Errorf("%w: generation %d", ErrHello, h.Generation)
	}
	if h.Heard >= max(1, h.Generation) || h.Heard > 0 && h.Generation-h.Heard > maxWords {
		return fmt.Errorf("%w: generation %d by an operator's word, after generation %d", ErrHello, h.Generation, h.Heard)
	}
	if o := h.Offer; o != nil && (len(o.Memory) > maxList || len(o.Disks) > maxDisks || len(o.Growing) > maxDisks || len(o.Networks) > maxNetworks || len(o.Devices) > maxDevices || len(o.Machine) > failover.MaxName) {
		return fmt.Errorf("%w: %d blocks of memory and %d disks", ErrHello, len(o.Memory), len(o.Disks))
	}
	if o := h.Offer; o != nil && (o.Channels < 0 || o.Channels > maxChannels) {
		return fmt.Errorf("%w: %d channels of memory", ErrHello, o.Channels)
	}
	return nil
}

// A note is a message on the control connection after the hello: a length of 16 bits and that
// many bytes of JSON.
type note struct {
	Say string `json:"say"`
	// Seq, of sayAsk and sayPromise: the number of the question. Of sayGo: that of the
	// checkpoint. Of sayLast: that of the last checkpoint, for which the primary's guest stands still already; 0: it
	// still runs. Of sayGrow and sayGrown: the number of the growth in the session.
	// Of sayReach and sayReaches: that of the question. Of a secondary's sayCannot and sayEnd: the generation that it may have
	// been granted, and will not use; 0: it cannot say so.
	Seq    uint64 `json:"seq,omitempty"`
	Reason string `json:"reason,omitempty"`
	TermNS int64  `json:"term_ns,omitempty"`
	// Migrate, of sayGo: the sender does not follow, and the guest is not
	// protected until somebody says so.
	Migrate bool `json:"migrate,omitempty"`
	// Completed, of sayEnd: there is no guest any more.
	Completed bool `json:"completed,omitempty"`
	// Verb, of sayEnd: by which the session was ended, as an input is called; "": by none, or
	// the sender does not say it.
	Verb string `json:"verb,omitempty"`
	// From, of sayGo: the token under which the arbiter knows the sender as the holder, which has given
	// the guest up for the receiver. "": the sender has released it.
	From string `json:"from,omitempty"`
	// Elsewhere, of sayReaches: the sender's arbiter answers, and does not know of the receiver's grant.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Disk and Size, of sayGrow: which disk is to become how long, in bytes.
	Disk string `json:"disk,omitempty"`
	Size int64  `json:"size,omitempty"`
}

const (
	sayAsk      = "promise?" // primary: do not claim the guest for that term
	sayPromise  = "promise"  // secondary: I do not, counted from now
	sayDisks    = "disks"    // primary: the disks are synchronised, the session begins
	sayFull     = "full"     // secondary: an overlay fills, make a checkpoint
	sayEnd      = "end"      // the session ends on purpose: do not claim the guest
	sayHeard    = "heard"    // answers sayEnd and sayRuns: that was heard, and the connection may close
	sayLeaves   = "leaves"   // the sender's Run is about to end, and with it the session; the guest may be claimed
	sayFarewell = "farewell" // answers sayLeaves: that was heard
	sayLast     = "last"     // primary: leave the guest standing from the next commit on, it is about to be handed over
	sayStays    = "stays"    // primary: the switchover was called off, the guest runs on where it ran; takes sayLast back
	sayReach    = "reach?"   // primary: does the arbiter answer you
	sayReaches  = "reaches"  // secondary: it does, or why not; answers sayReach
	sayGo       = "go"       // primary: the guest is released, or given up for the receiver: claim it and run it
	sayRuns     = "runs"     // secondary: it runs here
	sayWhy      = "why"      // the sender ends the session by itself, and why; who goes on is settled as if it had not said so
	sayGrow     = "grow"     // primary: make that disk of yours longer
	sayGrown    = "grown"    // secondary: it is that long, or why it is not; answers sayGrow
	sayCannot   = "cannot"   // secondary: the guest does not run here; or, before the first checkpoint, it cannot follow
)

const maxNote = 4 << 10

func writeNote(w io.Writer, n note) error {
	n.Reason = plain.Text(n.Reason, maxNote/8) // JSON may take six bytes for one
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(body)), uint16(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

func readNote(r io.Reader) (note, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return note{}, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxNote {
		return note{}, fmt.Errorf("protect: a note of %d bytes, at most %d", n, maxNote)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return note{}, err
	}
	var out note
	if err := json.Unmarshal(body, &out); err != nil {
		return note{}, fmt.Errorf("protect: note: %w", err)
	}
	if len(out.From) > failover.MaxName {
		return note{}, fmt.Errorf("protect: a note with a holder's token of %d bytes, at most %d", len(out.From), failover.MaxName)
	}
	out.Reason = plain.Text(out.Reason, maxNote)
	return out, nil
}
