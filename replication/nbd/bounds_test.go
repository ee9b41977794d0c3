package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
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
