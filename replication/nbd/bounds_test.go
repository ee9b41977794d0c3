package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestANameIsAtMostAsLongAsItMayBe(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Disk: newRAM(4096)})
	conn, err := net.Dial("unix", path)
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
		for n, want := range map[int]uint32{maxName: repErrUnknown, maxName + 1: repErrInvalid} {
			data := binary.BigEndian.AppendUint32(nil, uint32(n))
			data = append(data, strings.Repeat("x", n)+"\x00\x00"...)
			if err := d.send(optInfo, data); err != nil {
				return err
			}
			_, _, err := d.reply(optInfo)
			var refused *OptionError
			if !errors.As(err, &refused) || refused.Code != want {
				t.Errorf("a name of %d bytes: %v, want code %#x", n, err, want)
			}
		}
		_, err := d.choose(strings.Repeat("x", maxName+1))
		if err == nil {
			t.Error("the client asks by a longer name")
		}
		_, err = d.choose("d")
		return err
	})
	must(t, err)
	must(t, conn.Close())
}

// Of the data of one option a client could else make a thousand times as much.
func TestWhatIsToldOfAnExportIsToldOnce(t *testing.T) {
	srv, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Disk: newRAM(4096), Description: strings.Repeat("x", maxName)})
	if _, err := srv.Export(ExportConfig{Name: "e", Disk: newRAM(4096), Description: strings.Repeat("x", maxName+1)}); err == nil {
		t.Error("a description is longer than clients take")
	}
	conn, err := net.Dial("unix", path)
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
		const items = 30_000
		data := binary.BigEndian.AppendUint32(nil, 1)
		data = binary.BigEndian.AppendUint16(append(data, 'd'), items)
		for i := range items {
			data = binary.BigEndian.AppendUint16(data, uint16(1+i%5))
		}
		if err := d.send(optInfo, data); err != nil {
			return err
		}
		told := map[uint16]int{}
		for {
			typ, p, err := d.reply(optInfo)
			if err != nil {
				return err
			}
			if typ == repAck {
				break
			}
			told[binary.BigEndian.Uint16(p)]++
		}
		for _, kind := range []uint16{infoExport, infoName, infoDescription, infoBlockSize} {
			if told[kind] != 1 {
				t.Errorf("kind %d is told %d times", kind, told[kind])
			}
		}
		_, err := d.choose("d")
		return err
	})
	must(t, err)
	must(t, conn.Close())
}

func TestAQueryHasNamesAsLongAsTheyMayBe(t *testing.T) {
	long, longer := strings.Repeat("x", maxName), strings.Repeat("x", maxName+1)
	for _, c := range []struct {
		what  string
		query metaQuery
		good  bool
	}{
		{"an export", metaQuery{export: long}, true},
		{"a longer export", metaQuery{export: longer}, false},
		{"a context", metaQuery{export: "d", queries: []string{long}}, true},
		{"a longer context", metaQuery{export: "d", queries: []string{longer}}, false},
	} {
		if new(metaQuery).parse(c.query.append(nil)) != c.good {
			t.Errorf("%s is taken: %v", c.what, !c.good)
		}
	}
}

func TestAnExportOfANegativeSizeIsRefusedForThat(t *testing.T) {
	for size, good := range map[uint64]bool{1<<63 - 1: true, 1 << 63: false} {
		p := appendOptReply(nil, optGo, repInfo, slices.Concat(be16(infoExport), be64(size), be16(flagHasFlags)))
		p = appendOptReply(p, optGo, repAck, nil)
		d := dialogue{fixed: true, conn: answers{}, r: newReader(bytes.NewReader(p))}
		_, err := d.choose("d")
		var pe *ProtocolError
		if good != (err == nil) || !good && (!errors.As(err, &pe) || pe.Got != size) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A server may list ten thousand exports, and would fill 640 MB with names as long as a
// reply.
func TestTheNamesThatAServerListsAreBounded(t *testing.T) {
	be := binary.BigEndian
	for _, c := range []struct {
		n, count int
		good     bool
	}{{maxName, 256, true}, {maxName + 1, 1, false}, {maxName, 257, false}} {
		p := be.AppendUint64(nil, magicServer)
		p = be.AppendUint64(p, magicOption)
		p = be.AppendUint16(p, flagFixedNewstyle)
		reply := func(typ uint32, data []byte) {
			p = be.AppendUint64(p, magicOptReply)
			p = be.AppendUint32(be.AppendUint32(p, optList), typ)
			p = append(be.AppendUint32(p, uint32(len(data))), data...)
		}
		for range c.count {
			reply(repServer, append(be.AppendUint32(nil, uint32(c.n)), strings.Repeat("x", c.n)...))
		}
		reply(repAck, nil)
		names, err := List(context.Background(), answers{Reader: bytes.NewReader(p)}, ClientConfig{})
		var pe *ProtocolError
		if c.good != (err == nil) || !c.good && !errors.As(err, &pe) || c.good && len(names) != c.count {
			t.Errorf("%d names of %d bytes: %d, %v", c.count, c.n, len(names), err)
		}
	}
}
