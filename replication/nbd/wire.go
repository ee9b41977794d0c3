package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
)

// Values of the protocol (proto, "Values").
const (
	magicServer   = 0x4e42444d41474943 // NBDMAGIC
	magicOption   = 0x49484156454f5054 // IHAVEOPT
	magicOptReply = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicReply    = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optStartTLS   = 5
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10

	repAck    = 1
	repServer = 2
	repInfo   = 3
	repMeta   = 4

	repErr         = 1 << 31
	repErrUnsup    = repErr | 1
	repErrPolicy   = repErr | 2
	repErrInvalid  = repErr | 3
	repErrTLSReqd  = repErr | 5
	repErrUnknown  = repErr | 6
	repErrShutdown = repErr | 7
	repErrTooBig   = repErr | 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3

	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3

	requestLen = 28
	replyLen   = 16

	maxName = 4096 // proto, "Values": strings
)

var commandNames = map[uint16]string{
	cmdRead: "read", cmdWrite: "write", cmdDisc: "disconnect", cmdFlush: "flush", cmdTrim: "trim", cmdWriteZeroes: "write zeroes",
	cmdBlockStatus: "block status",
}

func commandName(cmd uint16) string {
	if s, ok := commandNames[cmd]; ok {
		return s
	}
	return fmt.Sprintf("command %d", cmd)
}

// request is the header of a request.
type request struct {
	flags, cmd uint16
	handle     uint64
	off        uint64
	n          uint32
}

func (r *request) append(p []byte) []byte {
	be := binary.BigEndian
	p = be.AppendUint32(p, magicRequest)
	p = be.AppendUint16(p, r.flags)
	p = be.AppendUint16(p, r.cmd)
	p = be.AppendUint64(p, r.handle)
	p = be.AppendUint64(p, r.off)
	return be.AppendUint32(p, r.n)
}

// parse reads the header in p, of requestLen bytes.
func (r *request) parse(p []byte) error {
	be := binary.BigEndian
	if m := be.Uint32(p); m != magicRequest {
		return &ProtocolError{What: "request magic", Got: uint64(m)}
	}
	*r = request{be.Uint16(p[4:]), be.Uint16(p[6:]), be.Uint64(p[8:]), be.Uint64(p[16:]), be.Uint32(p[24:])}
	return nil
}

func appendReply(p []byte, errno uint32, handle uint64) []byte {
	p = binary.BigEndian.AppendUint32(p, magicReply)
	p = binary.BigEndian.AppendUint32(p, errno)
	return binary.BigEndian.AppendUint64(p, handle)
}

// ProtocolError says that the peer does not keep to the protocol. The
// connection cannot be used any more.
type ProtocolError struct {
	What string
	Got  uint64
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("nbd: protocol violation: %s %#x", e.What, e.Got)
}

// OptionError says that the server has refused an option: the export is not
// there, or of another generation, or wants TLS.
type OptionError struct {
	Option  uint32
	Code    uint32 // NBD_REP_ERR_*
	Message string // the server's, for people
}

func (e *OptionError) Error() string {
	s := fmt.Sprintf("nbd: option %d refused, code %d", e.Option, e.Code&^uint32(repErr))
	if e.Message != "" {
		s += ": " + strconv.Quote(e.Message)
	}
	return s
}

// Is makes an OptionError match the sentinel of its code.
func (e *OptionError) Is(target error) bool {
	switch target {
	case ErrUnknownExport:
		return e.Code == repErrUnknown
	case ErrPolicy:
		return e.Code == repErrPolicy
	case ErrTLSRequired:
		return e.Code == repErrTLSReqd
	case errors.ErrUnsupported:
		return e.Code == repErrUnsup
	}
	return false
}

// RequestError says that one request failed at the server. The connection goes
// on. It unwraps to the errno.
type RequestError struct {
	Command string
	Off     int64
	Len     int64
	Errno   syscall.Errno
	Message string // the server's, for people; often empty
}

func (e *RequestError) Error() string {
	s := fmt.Sprintf("nbd: %s of %d bytes at %d: %v", e.Command, e.Len, e.Off, e.Errno)
	if e.Message != "" {
		s += ": " + strconv.Quote(e.Message)
	}
	return s
}

// Unwrap returns the server's Errno.
func (e *RequestError) Unwrap() error { return e.Errno }

// Errors that a caller may want to tell apart with errors.Is.
var (
	// ErrUnknownExport: the server has no export of that name.
	ErrUnknownExport = errors.New("nbd: no such export")
	// ErrPolicy: the server will not serve this client, for example because the
	// client asked for another generation than that of the export, or the
	// export has as many clients as it may.
	ErrPolicy = errors.New("nbd: refused by policy")
	// ErrTLSRequired: the server serves nothing without TLS.
	ErrTLSRequired = errors.New("nbd: TLS is required")
	// ErrClosed: the client, or the export, has been closed.
	ErrClosed = errors.New("nbd: closed")
	// ErrTimeout: the peer has not answered in time.
	ErrTimeout = errors.New("nbd: no answer in time")
	// ErrReadOnly: a write to a read-only export.
	ErrReadOnly = errors.New("nbd: the export is read-only")
	// ErrAlignment: a request that is no multiple of the server's minimum
	// block size.
	ErrAlignment = errors.New("nbd: request not aligned to the minimum block size")
	// ErrRange: a request beyond the end of the export.
	ErrRange = errors.New("nbd: beyond the end of the export")
)

// Errnos of the protocol (proto, "Error values").
var errnos = map[syscall.Errno]uint32{
	syscall.EPERM: 1, syscall.EIO: 5, syscall.ENOMEM: 12, syscall.EINVAL: 22,
	syscall.ENOSPC: 28, syscall.EOVERFLOW: 75, syscall.ENOTSUP: 95, syscall.ESHUTDOWN: 108,
}

// toErrno returns the protocol's number of the errno that err matches, or that of EIO if
// it matches none.
func toErrno(err error) uint32 {
	if err == nil {
		return 0
	}
	for errno, n := range errnos {
		if errno != syscall.EIO && errors.Is(err, errno) {
			return n
		}
	}
	return errnos[syscall.EIO]
}

func fromErrno(n uint32) syscall.Errno {
	for errno, m := range errnos {
		if m == n {
			return errno
		}
	}
	return syscall.EIO
}

// Name returns the name on the wire of an export with a generation: the name
// itself for generation zero.
func Name(name string, generation uint64) string {
	if generation == 0 {
		return name
	}
	return name + "@" + strconv.FormatUint(generation, 10)
}

// SplitName undoes Name. A name that ends in something else than a
// generation is all name.
func SplitName(s string) (name string, generation uint64) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s, 0
	}
	g, err := strconv.ParseUint(s[i+1:], 10, 64)
	if err != nil || g == 0 || s != Name(s[:i], g) {
		return s, 0
	}
	return s[:i], g
}

// errEnded is the error of a connection that the other side has ended where something had to come.
var errEnded = fmt.Errorf("nbd: the other side has ended the connection: %w", io.ErrUnexpectedEOF)

// ended returns err, in words where it is the end of the stream.
func ended(err error) error {
	if err == io.ErrUnexpectedEOF {
		return errEnded
	}
	return err
}

// readFull reads all of p. The end of the stream is unexpected.
func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
