package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
)

const (
	maxOption  = 64 << 10 // the longest data of an option that is read, in bytes
	maxOptions = 1000     // in one negotiation
)

// negotiation is the server's side of the handshake (proto, "Newstyle
// negotiation" and "Fixed newstyle negotiation").
type negotiation struct {
	srv      *Server
	at       *place
	log      *clientLog
	asked    string   // the export that the client has asked for last
	raw      *link    // the connection that the export closes
	conn     net.Conn // raw's connection, or TLS over it
	r        *reader
	tls      bool
	noZeroes bool
	leave    func()
	out      []byte // replies to an option that is not done with

	structured bool // structured replies were agreed on
	metaExport *Export
	contexts   []selectedContext // the contexts that were chosen of metaExport
}

// run returns the export that the client has chosen, or nil and no error if
// it has left.
func (n *negotiation) run() (*Export, error) {
	n.r = newReader(n.conn)
	be := binary.BigEndian
	hello := be.AppendUint64(nil, magicServer)
	hello = be.AppendUint64(hello, magicOption)
	hello = be.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := n.conn.Write(hello); err != nil {
		return nil, err
	}
	var head [16]byte
	if err := readFull(n.r, head[:4]); err != nil {
		return nil, err
	}
	flags := be.Uint32(head[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, &ProtocolError{"client flags", uint64(flags)}
	}
	n.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		if err := readFull(n.r, head[:]); err != nil {
			return nil, err
		}
		if m := be.Uint64(head[:]); m != magicOption {
			return nil, &ProtocolError{"option magic", m}
		}
		opt, length := be.Uint32(head[8:]), be.Uint32(head[12:])
		if length > maxOption {
			return nil, &ProtocolError{fmt.Sprintf("option %d of length", opt), uint64(length)}
		}
		data := make([]byte, length)
		if err := readFull(n.r, data); err != nil {
			return nil, err
		}
		n.at.spoke()
		e, done, err := n.option(opt, data)
		if done || err != nil {
			return e, err
		}
	}
	return nil, &ProtocolError{"number of options", maxOptions}
}

// option answers one option.
func (n *negotiation) option(opt uint32, data []byte) (e *Export, done bool, err error) {
	if n.srv.cfg.RequireTLS && !n.tls {
		switch opt {
		case optStartTLS, optAbort:
		case optExportName:
			return nil, true, ErrTLSRequired // EXPORT_NAME has no other answer
		default:
			return nil, false, n.refuse(opt, &OptionError{Code: repErrTLSReqd, Message: "TLS is required"})
		}
	}
	switch opt {
	case optExportName:
		return n.exportName(string(data))
	case optAbort:
		n.reply(opt, repAck, nil) // the client may be gone
		return nil, true, nil
	case optList:
		return nil, false, n.list(data)
	case optStartTLS:
		return nil, false, n.startTLS(data)
	case optInfo, optGo:
		return n.info(opt, data)
	case optStructured:
		if len(data) != 0 {
			return nil, false, n.refuse(opt, &OptionError{Code: repErrInvalid, Message: "STRUCTURED_REPLY has no data"})
		}
		n.structured = true
		return nil, false, n.reply(opt, repAck, nil)
	case optListMeta, optSetMeta:
		return nil, false, n.meta(opt, data)
	}
	return nil, false, n.refuse(opt, &OptionError{Code: repErrUnsup})
}

// reply sends a reply to an option. One that others follow is sent with them.
func (n *negotiation) reply(opt, typ uint32, data []byte) error {
	be := binary.BigEndian
	n.out = be.AppendUint64(n.out, magicOptReply)
	n.out = be.AppendUint32(n.out, opt)
	n.out = be.AppendUint32(n.out, typ)
	n.out = be.AppendUint32(n.out, uint32(len(data)))
	n.out = append(n.out, data...)
	if last := typ != repServer && typ != repInfo && typ != repMeta; !last && len(n.out) < mostReplies {
		return nil
	}
	_, err := n.conn.Write(n.out)
	n.out = n.out[:0]
	return err
}

// mostReplies is how many bytes of replies are sent at a time, at least.
const mostReplies = 16 << 10

func (n *negotiation) refuse(opt uint32, e *OptionError) error {
	n.log.refuse(n.asked, &OptionError{Option: opt, Code: e.Code, Message: e.Message})
	return n.reply(opt, e.Code, []byte(e.Message))
}

// exportName handles the oldest option for choosing an export, which can be refused only
// by hanging up.
func (n *negotiation) exportName(name string) (*Export, bool, error) {
	e, refused := n.srv.find(name)
	if refused == nil {
		n.leave, refused = e.admit(n.raw)
	}
	if refused != nil {
		refused.Option = optExportName
		n.log.refuse(name, refused)
		return nil, true, refused
	}
	p := binary.BigEndian.AppendUint64(nil, uint64(e.cfg.Disk.Size()))
	p = binary.BigEndian.AppendUint16(p, e.flags(n.structured))
	if !n.noZeroes {
		p = append(p, make([]byte, 124)...)
	}
	if _, err := n.conn.Write(p); err != nil {
		n.leave()
		return nil, true, err
	}
	return e, true, nil
}

func (n *negotiation) list(data []byte) error {
	if len(data) != 0 {
		return n.refuse(optList, &OptionError{Code: repErrInvalid, Message: "LIST has no data"})
	}
	n.srv.mu.Lock()
	var names []string
	for _, e := range n.srv.exports {
		names = append(names, e.WireName())
	}
	n.srv.mu.Unlock()
	slices.Sort(names)
	for _, name := range names {
		p := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		if err := n.reply(optList, repServer, append(p, name...)); err != nil {
			return err
		}
	}
	return n.reply(optList, repAck, nil)
}

func (n *negotiation) startTLS(data []byte) error {
	switch {
	case len(data) != 0:
		return n.refuse(optStartTLS, &OptionError{Code: repErrInvalid, Message: "STARTTLS has no data"})
	case n.srv.cfg.TLS == nil:
		return n.refuse(optStartTLS, &OptionError{Code: repErrPolicy, Message: "TLS is not configured"})
	case n.tls:
		return n.refuse(optStartTLS, &OptionError{Code: repErrInvalid, Message: "TLS is on"})
	case n.r.Buffered() > 0:
		// Bytes that were sent in the clear must not count as sent under TLS.
		return &ProtocolError{"bytes after STARTTLS", uint64(n.r.Buffered())}
	}
	if err := n.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	c := tls.Server(n.conn, n.srv.cfg.TLS)
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	n.conn, n.tls = c, true
	n.structured, n.metaExport, n.contexts = false, nil, nil // STARTTLS voids all earlier options
	n.r.reset(c)
	return nil
}

// info answers INFO and GO.
func (n *negotiation) info(opt uint32, data []byte) (*Export, bool, error) {
	invalid := &OptionError{Code: repErrInvalid, Message: "malformed option"}
	be := binary.BigEndian
	if len(data) < 6 {
		return nil, false, n.refuse(opt, invalid)
	}
	nameLen := be.Uint32(data)
	if nameLen > maxName || int64(nameLen) > int64(len(data))-6 {
		return nil, false, n.refuse(opt, invalid)
	}
	name, rest := string(data[4:4+nameLen]), data[4+nameLen:]
	count, rest := int(be.Uint16(rest)), rest[2:]
	if len(rest) != 2*count {
		return nil, false, n.refuse(opt, invalid)
	}
	n.asked = name
	e, refused := n.srv.find(name)
	if refused == nil && opt == optGo {
		n.leave, refused = e.admit(n.raw)
	}
	if refused != nil {
		return nil, false, n.refuse(opt, refused)
	}
	err := n.sendInfo(opt, e, rest)
	if opt == optInfo {
		return nil, false, err
	}
	if err != nil {
		n.leave()
		return nil, true, err
	}
	return e, true, nil
}

func (n *negotiation) sendInfo(opt uint32, e *Export, wanted []byte) error {
	be := binary.BigEndian
	p := be.AppendUint16(nil, infoExport)
	p = be.AppendUint64(p, uint64(e.cfg.Disk.Size()))
	p = be.AppendUint16(p, e.flags(n.structured))
	if err := n.reply(opt, repInfo, p); err != nil {
		return err
	}
	// Block sizes are sent to clients that have not asked for them too: the server has a
	// maximum, and they may not know.
	p = be.AppendUint16(nil, infoBlockSize)
	p = be.AppendUint32(p, 1)
	p = be.AppendUint32(p, 4096)
	p = be.AppendUint32(p, n.srv.cfg.MaxRequest)
	if err := n.reply(opt, repInfo, p); err != nil {
		return err
	}
	named, described := false, e.cfg.Description == ""
	for ; len(wanted) > 0; wanted = wanted[2:] {
		var text string
		typ := be.Uint16(wanted)
		switch { // each once, however often it is asked for
		case typ == infoName && !named:
			text, named = e.WireName(), true
		case typ == infoDescription && !described:
			text, described = e.cfg.Description, true
		default:
			continue
		}
		if err := n.reply(opt, repInfo, append(be.AppendUint16(nil, typ), text...)); err != nil {
			return err
		}
	}
	return n.reply(opt, repAck, nil)
}
