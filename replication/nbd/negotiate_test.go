package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEXPORTNAMEForClientsThatKnowNothingElse(t *testing.T) {
	disk := newRAM(8192)
	disk.data[4096] = 5
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Generation: 2, Disk: disk, MaxClients: 4})
	for _, brief := range []bool{true, false} {
		conn, err := net.Dial("unix", path)
		must(t, err)
		cfg := ClientConfig{}
		cfg.setDefaults()
		if !brief {
			conn = &plainHello{Conn: conn}
		}
		err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
			d.fixed = false
			info, err := d.choose("d@2")
			if err != nil {
				return err
			}
			c := newClient(d, info, cfg)
			defer c.Close()
			p := make([]byte, 1)
			if _, err := c.ReadAt(p, 4096); err != nil || p[0] != 5 || c.Size() != 8192 {
				t.Errorf("read %d of %d: %v", p[0], c.Size(), err)
			}
			return err
		})
		must(t, err)
	}
	conn, err := net.Dial("unix", path)
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
		d.fixed = false
		_, err := d.choose("d@1")
		return err
	})
	wantErr(t, "another generation", err, io.ErrUnexpectedEOF) // it can only hang up
}

// plainHello clears NO_ZEROES in what the server offers.
type plainHello struct {
	net.Conn
	seen int
}

func (p *plainHello) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if i := 17 - p.seen; i >= 0 && i < n {
		b[i] &^= flagNoZeroes
	}
	p.seen += n
	return n, err
}

// talk sends options, after the hello of the fixed newstyle, and returns what
// the server answers to each: its types of reply, and what they carry.
func talk(t *testing.T, path string, options ...[]byte) (replies []string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	hello := make([]byte, 18)
	must(t, readFull(conn, hello))
	be := binary.BigEndian
	_, err = conn.Write(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	must(t, err)
	for _, o := range options {
		_, err := conn.Write(o)
		must(t, err)
		for done := false; !done; {
			head := make([]byte, 20)
			must(t, readFull(conn, head))
			data := make([]byte, be.Uint32(head[16:]))
			must(t, readFull(conn, data))
			if be.Uint64(head) != magicOptReply || be.Uint32(head[8:]) != be.Uint32(o[8:]) {
				t.Fatalf("reply % x to option % x", head, o)
			}
			typ := be.Uint32(head[12:])
			replies = append(replies, fmt.Sprintf("%#x %x", typ, data))
			done = typ != repInfo && typ != repServer
		}
	}
	// After ABORT, or with the export chosen, there is nothing more to come.
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if n, err := conn.Read(hello); n > 0 {
		t.Errorf("the server goes on with % x, %v", hello[:n], err)
	}
	return replies
}

func option(opt uint32, data ...byte) []byte {
	be := binary.BigEndian
	p := be.AppendUint64(nil, magicOption)
	p = be.AppendUint32(p, opt)
	return append(be.AppendUint32(p, uint32(len(data))), data...)
}

func TestINFOTellsWhatGOWouldAndTakesNoPlace(t *testing.T) {
	_, exps, path := serve(t, ServerConfig{MaxRequest: 1 << 20}, ExportConfig{Name: "d", Disk: newRAM(8192)})
	ask := []byte{0, 0, 0, 1, 'd', 0, 1, 0, infoBlockSize}
	info := []string{
		"0x3 0000" + "0000000000002000" + "006d",          // export: its size, flags
		"0x3 0003" + "00000001" + "00001000" + "00100000", // block size: least, preferred, most
		"0x1 ",
	}
	wrong := fmt.Sprintf("%#x %x", uint32(repErrUnknown), "no such export")
	unsupported := fmt.Sprintf("%#x ", uint32(repErrUnsup))
	got := talk(t, path, option(optInfo, ask...), option(optInfo, 0, 0, 0, 1, 'e', 0, 0), option(99), option(optAbort))
	if want := slices.Concat(info, []string{wrong, unsupported, "0x1 "}); !slices.Equal(got, want) {
		t.Errorf("INFO and ABORT:\n got %q\nwant %q", got, want)
	}
	if n := exps[0].Clients(); n != 0 {
		t.Errorf("%d clients after INFO", n)
	}
	if got := talk(t, path, option(optInfo, ask...), option(optGo, ask...)); !slices.Equal(got, slices.Concat(info, info)) {
		t.Errorf("INFO and GO:\n got %q\nwant %q twice", got, info)
	}
	for name, data := range map[string][]byte{
		"too short": {0, 0, 0, 1}, "a name beyond the option": {0, 0, 0, 9, 'd', 0, 0}, "fewer requests than it says": {0, 0, 0, 1, 'd', 0, 2, 0, 3},
		"more requests than it says": {0, 0, 0, 1, 'd', 0, 1, 0, 3, 0, 3}, "half a request": {0, 0, 0, 1, 'd', 0, 1, 0, 3, 0},
	} {
		if got := talk(t, path, option(optGo, data...), option(optAbort)); len(got) != 2 || !strings.HasPrefix(got[0], fmt.Sprintf("%#x", uint32(repErrInvalid))) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
