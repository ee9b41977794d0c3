package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// ClientConfig says what a [Client] connects to, and how.
type ClientConfig struct {
	// Export is the name of the export on the wire; see [Name] for one with
	// a generation.
	Export string
	// TLS, if not nil, is used by STARTTLS, without which the client does
	// not go on. A caller that wants TLS from the first byte hands over a
	// *tls.Conn instead.
	TLS *tls.Config
	// Contexts are metadata contexts to select, in addition to
	// ContextAllocation, at most 15. A server need not have them; see
	// [Client.Contexts].
	Contexts []string
	// MaxRequests bounds the requests under way; zero means 128. More wait.
	MaxRequests int
	// Timeout is how long connecting by Dial, and then negotiation as a whole, may take,
	// and after it for how long (or an eighth longer) nothing may move over the connection,
	// either way, while an answer is owed; zero means 30 s. Then the connection is lost,
	// with ErrTimeout. A link that moves bytes is never too slow: whoever cannot wait for
	// an answer closes the Client. A server that answers others and leaves one request
	// without an answer is not noticed by this until the others have ended.
	//
	// On Linux a byte over TCP has moved when the other host acknowledges it. Elsewhere
	// what the kernel takes counts, where a write had to wait for that.
	Timeout time.Duration
	// Logger hears that the connection has failed (Warn), with the export's name on the
	// wire, which has its generation. What NewClient and Close do is not logged: they
	// say it to who calls them. Nil: nothing is logged.
	Logger *slog.Logger
}

func (c *ClientConfig) setDefaults() {
	if c.MaxRequests == 0 {
		c.MaxRequests = 128
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
}

// Info has what the server says of an export.
type Info struct {
	Name         string // as the client asked for it, or as LIST has it
	Size         int64  // in bytes
	ReadOnly     bool
	Flush        bool // the server can make writes stable
	FUA          bool
	Trim         bool
	WriteZeroes  bool
	MinBlock     uint32 // requests must be multiples of this, in bytes
	PreferBlock  uint32
	MaxBlock     uint32 // of reads and writes, in bytes
	transmission uint16
}

func (i *Info) setFlags(flags uint16) {
	i.transmission = flags
	i.ReadOnly = flags&flagReadOnly != 0
	i.Flush = flags&flagSendFlush != 0
	i.FUA = flags&flagSendFUA != 0
	i.Trim = flags&flagSendTrim != 0
	i.WriteZeroes = flags&flagSendWriteZeroes != 0
}

// Dial connects to addr and negotiates; see NewClient. A host that does not answer, as
// one does whose power or link is gone, is given up after Timeout, with ErrTimeout; the
// kernel alone would try for minutes.
func Dial(ctx context.Context, network, addr string, cfg ClientConfig) (*Client, error) {
	return dialBy(ctx, new(net.Dialer).DialContext, network, addr, cfg)
}

// dialBy is Dial with another way to connect.
func dialBy(ctx context.Context, connect func(ctx context.Context, network, addr string) (net.Conn, error), network, addr string, cfg ClientConfig) (*Client, error) {
	cfg.setDefaults()
	limit, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	conn, err := connect(limit, network, addr)
	switch {
	case err == nil:
		return NewClient(ctx, conn, cfg)
	case ctx.Err() == nil && limit.Err() != nil:
		return nil, fmt.Errorf("%w: connecting to %s: %w", ErrTimeout, addr, err)
	}
	return nil, err
}

// NewClient negotiates over conn, which it owns from now on, also if it
// fails. ctx is for the negotiation only. Errors are *OptionError where the
// server refuses (ErrUnknownExport, ErrPolicy, ErrTLSRequired),
// *ProtocolError, and errors.ErrUnsupported if there is to be TLS, and the server is so old that it
// cannot be asked for it.
func NewClient(ctx context.Context, conn net.Conn, cfg ClientConfig) (*Client, error) {
	cfg.setDefaults()
	var c *Client
	err := handshake(ctx, conn, cfg, func(d *dialogue) error {
		if d.fixed {
			if err := d.structuredReplies(cfg.Export, cfg.Contexts); err != nil {
				return err
			}
		}
		info, err := d.choose(cfg.Export)
		if err != nil {
			return err
		}
		c = newClient(d, info, cfg)
		return nil
	})
	return c, err
}

// List returns the names of the server's exports, over a connection of its
// own, which it closes. The error is errors.ErrUnsupported if the server cannot tell.
func List(ctx context.Context, conn net.Conn, cfg ClientConfig) ([]string, error) {
	cfg.setDefaults()
	var names []string
	err := handshake(ctx, conn, cfg, func(d *dialogue) error {
		var err error
		if names, err = d.list(); err != nil {
			return err
		}
		return d.send(optAbort, nil)
	})
	conn.Close()
	return names, err
}

// dialogue is the client's side of the handshake.
type dialogue struct {
	conn  net.Conn
	r     *reader
	fixed bool // the server understands options
	brief bool // the flag NO_ZEROES is agreed upon

	structured bool // structured replies are agreed upon
	contexts   []clientContext
}

// handshake runs the part before the choice of an export, and then calls choose.
func handshake(ctx context.Context, conn net.Conn, cfg ClientConfig, choose func(*dialogue) error) (err error) {
	limit, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	stop := wait.AtEnd(limit, func() { hangUp(conn) })
	defer func() {
		if stop() && err == nil {
			err = net.ErrClosed // it was closed just now
		}
		if err == nil {
			return
		}
		conn.Close()
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case limit.Err() != nil:
			err = fmt.Errorf("%w: negotiation", ErrTimeout)
		default:
			err = ended(err)
		}
	}()
	d := &dialogue{conn: conn, r: newReader(conn)}
	var head [18]byte
	if err := readFull(d.r, head[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	if m := be.Uint64(head[:]); m != magicServer {
		return &ProtocolError{"server magic", m}
	}
	if m := be.Uint64(head[8:]); m != magicOption {
		return &ProtocolError{"newstyle magic", m}
	}
	flags := be.Uint16(head[16:])
	d.fixed, d.brief = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	p := be.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	if _, err := conn.Write(p); err != nil {
		return err
	}
	if cfg.TLS != nil {
		if !d.fixed {
			return noOptions("TLS")
		}
		if err := d.startTLS(limit, cfg.TLS); err != nil {
			return err
		}
	}
	return choose(d)
}

// noOptions is the error of what is asked for by options, of a server that is not of the fixed
// newstyle: it takes the choice of an export for the only option (proto, "Fixed newstyle
// negotiation").
func noOptions(what string) error {
	return fmt.Errorf("nbd: %s: a server that does not speak fixed newstyle knows no options: %w", what, errors.ErrUnsupported)
}

func (d *dialogue) send(opt uint32, data []byte) error {
	be := binary.BigEndian
	p := be.AppendUint64(nil, magicOption)
	p = be.AppendUint32(p, opt)
	p = be.AppendUint32(p, uint32(len(data)))
	_, err := d.conn.Write(append(p, data...))
	return err
}

// reply reads one reply to opt.
func (d *dialogue) reply(opt uint32) (typ uint32, data []byte, err error) {
	var head [20]byte
	if err := readFull(d.r, head[:]); err != nil {
		return 0, nil, err
	}
	be := binary.BigEndian
	if m := be.Uint64(head[:]); m != magicOptReply {
		return 0, nil, &ProtocolError{"option reply magic", m}
	}
	if o := be.Uint32(head[8:]); o != opt {
		return 0, nil, &ProtocolError{fmt.Sprintf("reply to option %d with option", opt), uint64(o)}
	}
	typ = be.Uint32(head[12:])
	n := be.Uint32(head[16:])
	if n > maxOption {
		return 0, nil, &ProtocolError{"option reply of length", uint64(n)}
	}
	data = make([]byte, n)
	if err := readFull(d.r, data); err != nil {
		return 0, nil, err
	}
	if typ&repErr != 0 {
		return typ, nil, &OptionError{Option: opt, Code: typ, Message: words(data)}
	}
	return typ, data, nil
}

func (d *dialogue) startTLS(ctx context.Context, cfg *tls.Config) error {
	if err := d.send(optStartTLS, nil); err != nil {
		return err
	}
	typ, _, err := d.reply(optStartTLS)
	if err != nil {
		return err
	}
	if typ != repAck {
		return &ProtocolError{"reply to STARTTLS", uint64(typ)}
	}
	if n := d.r.Buffered(); n > 0 {
		return &ProtocolError{"bytes before the TLS handshake", uint64(n)}
	}
	c := tls.Client(d.conn, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	d.conn = c
	d.r.reset(c)
	return nil
}

const (
	maxReplies = 10000   // to one option
	maxListed  = 1 << 20 // bytes of the names of all exports
)

func (d *dialogue) list() ([]string, error) {
	if !d.fixed {
		return nil, noOptions("a list of exports")
	}
	if err := d.send(optList, nil); err != nil {
		return nil, err
	}
	var names []string
	listed := 0
	for range maxReplies {
		typ, data, err := d.reply(optList)
		if err != nil {
			return nil, err
		}
		switch typ {
		case repAck:
			return names, nil
		case repServer:
			if len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
				return nil, &ProtocolError{"export of length", uint64(len(data))}
			}
			n := binary.BigEndian.Uint32(data)
			if listed += int(n); n > maxName || listed > maxListed {
				return nil, &ProtocolError{"exports with names of length", uint64(listed)}
			}
			names = append(names, string(data[4:4+n]))
		default:
			return nil, &ProtocolError{"reply to LIST", uint64(typ)}
		}
	}
	return nil, &ProtocolError{"number of exports", maxReplies}
}

// structuredReplies asks for structured replies, and selects metadata contexts of an
// export. It is no error if the server refuses either.
func (d *dialogue) structuredReplies(export string, contexts []string) error {
	q := metaQuery{export, append([]string{ContextAllocation}, contexts...)}
	if len(q.queries) > maxContexts {
		return fmt.Errorf("nbd: %d metadata contexts", len(q.queries))
	}
	for i, name := range append(q.queries, export) {
		if len(name) > maxName {
			return fmt.Errorf("nbd: name of %d bytes", len(name))
		}
		if i < len(q.queries) && slices.Contains(q.queries[:i], name) {
			return fmt.Errorf("nbd: metadata context %q twice", name)
		}
	}
	var refused *OptionError
	if err := d.send(optStructured, nil); err != nil {
		return err
	}
	typ, _, err := d.reply(optStructured)
	switch {
	case errors.As(err, &refused):
		return nil
	case err != nil:
		return err
	case typ != repAck:
		return &ProtocolError{"reply to STRUCTURED_REPLY", uint64(typ)}
	}
	d.structured = true
	if err := d.send(optSetMeta, q.append(nil)); err != nil {
		return err
	}
	for range len(q.queries) + 1 {
		typ, data, err := d.reply(optSetMeta)
		switch {
		case errors.As(err, &refused): // GO will tell whether the export is to blame
			d.contexts = nil
			return nil
		case err != nil:
			return err
		case typ == repAck:
			return nil
		case typ != repMeta || len(data) < 4:
			return &ProtocolError{"reply to SET_META_CONTEXT", uint64(typ)}
		}
		x := clientContext{string(data[4:]), binary.BigEndian.Uint32(data)}
		again := slices.ContainsFunc(d.contexts, func(o clientContext) bool { return o.name == x.name || o.id == x.id })
		if again || !slices.Contains(q.queries, x.name) {
			return &ProtocolError{fmt.Sprintf("metadata context %q", x.name), uint64(x.id)}
		}
		d.contexts = append(d.contexts, x)
	}
	return &ProtocolError{"number of metadata contexts", uint64(len(q.queries) + 1)}
}

// choose asks for an export by GO, or EXPORT_NAME where the server does not
// know that.
func (d *dialogue) choose(name string) (Info, error) {
	if len(name) > maxName {
		return Info{}, fmt.Errorf("nbd: export name of %d bytes", len(name))
	}
	info := Info{Name: name, MinBlock: 1, PreferBlock: 4096, MaxBlock: 32 << 20} // proto, "Block size constraints"
	var err error
	if d.fixed {
		err = d.goOption(&info)
	}
	if !d.fixed || errors.Is(err, errors.ErrUnsupported) {
		err = d.exportName(&info)
	}
	switch {
	case err != nil:
	case info.transmission&flagHasFlags == 0:
		err = &ProtocolError{"export flags", uint64(info.transmission)}
	case info.Size < 0:
		err = &ProtocolError{"export of size", uint64(info.Size)}
	}
	return info, err
}

func (d *dialogue) goOption(info *Info) error {
	be := binary.BigEndian
	p := be.AppendUint32(nil, uint32(len(info.Name)))
	p = append(p, info.Name...)
	p = be.AppendUint16(p, 1)
	p = be.AppendUint16(p, infoBlockSize)
	if err := d.send(optGo, p); err != nil {
		return err
	}
	for range maxReplies {
		typ, data, err := d.reply(optGo)
		if err != nil {
			return err
		}
		if typ == repAck {
			return nil
		}
		if typ != repInfo || len(data) < 2 {
			return &ProtocolError{"reply to GO", uint64(typ)}
		}
		kind, data := be.Uint16(data), data[2:]
		switch {
		case kind == infoExport && len(data) == 10:
			info.Size = int64(be.Uint64(data))
			info.setFlags(be.Uint16(data[8:]))
		case kind == infoBlockSize && len(data) == 12:
			info.MinBlock, info.PreferBlock, info.MaxBlock = be.Uint32(data), be.Uint32(data[4:]), be.Uint32(data[8:])
			if info.MinBlock == 0 || info.MinBlock&(info.MinBlock-1) != 0 || info.MinBlock > 64<<10 || info.MaxBlock < info.MinBlock {
				return &ProtocolError{"block size", uint64(info.MinBlock)}
			}
		case kind == infoExport || kind == infoBlockSize:
			return &ProtocolError{"information of length", uint64(len(data))}
		}
	}
	return &ProtocolError{"number of replies", maxReplies}
}

func (d *dialogue) exportName(info *Info) error {
	if err := d.send(optExportName, []byte(info.Name)); err != nil {
		return err
	}
	p := make([]byte, 10+124)
	if d.brief {
		p = p[:10]
	}
	if err := readFull(d.r, p); err != nil {
		return err
	}
	info.Size = int64(binary.BigEndian.Uint64(p))
	info.setFlags(binary.BigEndian.Uint16(p[8:]))
	return nil
}
