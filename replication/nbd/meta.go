package nbd

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Context is a metadata context of an export: a property of every byte of the export,
// which clients ask for by block status (proto, "Metadata querying").
type Context struct {
	// Name has a namespace, a colon, and a name whose form the namespace defines.
	Name string
	// Extents calls yield with one extent after another, each with its length n in bytes
	// and its flags, that together cover [off, off+n) from off on, until yield returns
	// false. It is called by several goroutines at the same time. Extents of no length,
	// and parts beyond the range, are left out. An error is sent to the client.
	Extents func(off, n int64, yield func(n int64, flags uint32) bool) error
}

// Names of the contexts that this package defines or knows.
const (
	// ContextAllocation says where an export has holes: StateHole, StateZero.
	// Every export has it.
	ContextAllocation = "base:allocation"
	// ContextDirty is for the bitmap of a primary: StateDirty marks the parts that its
	// secondary lacks. An export has this context if its owner puts it into
	// ExportConfig.Contexts.
	ContextDirty = "x-lockstep:dirty"
)

// Flags of extents: of ContextAllocation the first two, of ContextDirty the
// last.
const (
	StateHole  = 1 << 0 // there is no storage behind it
	StateZero  = 1 << 1 // it reads as zeroes
	StateDirty = 1 << 0
)

const maxContexts = 16 // of an export, and of a client

// extenter is a Disk that knows where its holes are. A replication.ExtentReader is one.
type extenter interface {
	Extents(off, n int64, yield func(n int64, flags uint32) bool) error
}

// setContexts makes the contexts of the export.
func (e *Export) setContexts() error {
	allocation := Context{ContextAllocation, func(off, n int64, yield func(n int64, flags uint32) bool) error {
		return extentsOf(e.cfg.Disk, off, n, yield)
	}}
	e.contexts = append([]Context{allocation}, e.cfg.Contexts...)
	if len(e.contexts) > maxContexts {
		return fmt.Errorf("nbd: %d metadata contexts", len(e.contexts))
	}
	for i, c := range e.contexts {
		if j := strings.IndexByte(c.Name, ':'); j <= 0 || j == len(c.Name)-1 || len(c.Name) > maxName {
			return fmt.Errorf("nbd: metadata context %q", c.Name)
		}
		if slices.ContainsFunc(e.contexts[:i], func(o Context) bool { return o.Name == c.Name }) {
			return fmt.Errorf("nbd: metadata context %q twice", c.Name)
		}
	}
	return nil
}

// metaQuery is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaQuery struct {
	export  string
	queries []string
}

// parse reads the data of an option, and takes no more memory than that has bytes.
func (q *metaQuery) parse(data []byte) bool {
	text := func() (s string, ok bool) {
		if len(data) < 4 {
			return "", false
		}
		n := binary.BigEndian.Uint32(data)
		if n > maxName || int(n) > len(data)-4 {
			return "", false
		}
		s, data = string(data[4:4+n]), data[4+n:]
		return s, true
	}
	var ok bool
	if q.export, ok = text(); !ok || len(data) < 4 {
		return false
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	q.queries = nil
	for range count {
		s, ok := text()
		if !ok {
			return false
		}
		q.queries = append(q.queries, s)
	}
	return len(data) == 0
}

func (q *metaQuery) append(p []byte) []byte {
	be := binary.BigEndian
	p = be.AppendUint32(p, uint32(len(q.export)))
	p = append(p, q.export...)
	p = be.AppendUint32(p, uint32(len(q.queries)))
	for _, s := range q.queries {
		p = be.AppendUint32(p, uint32(len(s)))
		p = append(p, s...)
	}
	return p
}

// matches reports whether a query selects the context of that name. In LIST_META_CONTEXT
// no query selects all contexts, and a namespace selects those in it.
func (q *metaQuery) matches(name string, list bool) bool {
	if list && len(q.queries) == 0 {
		return true
	}
	for _, s := range q.queries {
		if s == name || list && strings.HasSuffix(s, ":") && strings.HasPrefix(name, s) {
			return true
		}
	}
	return false
}

// meta answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (n *negotiation) meta(opt uint32, data []byte) error {
	if opt == optSetMeta {
		n.metaExport, n.contexts = nil, nil // both are void, also if this option fails
	}
	if !n.structured {
		return n.refuse(opt, &OptionError{Code: repErrInvalid, Message: "structured replies come first"})
	}
	var q metaQuery
	if !q.parse(data) {
		return n.refuse(opt, &OptionError{Code: repErrInvalid, Message: "malformed option"})
	}
	n.asked = q.export
	e, refused := n.srv.find(q.export)
	if refused != nil {
		return n.refuse(opt, refused)
	}
	var selected []selectedContext
	for i, c := range e.contexts {
		if !q.matches(c.Name, opt == optListMeta) {
			continue
		}
		id := uint32(i + 1)
		if opt == optListMeta {
			id = 0
		}
		if err := n.reply(opt, repMeta, append(binary.BigEndian.AppendUint32(nil, id), c.Name...)); err != nil {
			return err
		}
		selected = append(selected, selectedContext{c, id})
	}
	if opt == optSetMeta {
		n.metaExport, n.contexts = e, selected
	}
	return n.reply(opt, repAck, nil)
}

// selectedContext is a context that a client has selected.
type selectedContext struct {
	Context
	id uint32
}
