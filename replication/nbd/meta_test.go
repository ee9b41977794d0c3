package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// striped returns a context whose extents of n bytes have the flags 0, 1, 2 … in
// turn.
func striped(n int64) func(off, length int64, yield func(int64, uint32) bool) error {
	return func(off, length int64, yield func(int64, uint32) bool) error {
		for end := off + length; off < end; {
			k := min(n-off%n, end-off)
			if !yield(k, uint32(off/n)) {
				return nil
			}
			off += k
		}
		return nil
	}
}

// haggle negotiates by hand: the options are sent as they are.
func haggle(t *testing.T, path string) *dialogue {
	t.Helper()
	conn, err := net.Dial("unix", path)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	d := &dialogue{conn: conn, r: newReader(conn), fixed: true, brief: true}
	must(t, readFull(d.r, make([]byte, 18)))
	_, err = conn.Write([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
	must(t, err)
	return d
}

// names sends a meta context option and returns the contexts of the answer.
func (d *dialogue) names(t *testing.T, opt uint32, export string, queries ...string) ([]string, error) {
	t.Helper()
	q := metaQuery{export, queries}
	must(t, d.send(opt, q.append(nil)))
	var names []string
	for {
		typ, data, err := d.reply(opt)
		if err != nil || typ == repAck {
			return names, err
		}
		if typ != repMeta || len(data) < 4 {
			t.Fatalf("reply %d of %d bytes", typ, len(data))
		}
		if opt == optListMeta && binary.BigEndian.Uint32(data) != 0 {
			t.Errorf("a list with the id of %q", data[4:])
		}
		names = append(names, string(data[4:]))
	}
}

func TestMetaContextOptions(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{
		Name: "d", Generation: 2, Disk: newRAM(8192), MaxClients: 4, Contexts: []Context{{ContextDirty, striped(512)}, {"x-other:a", striped(1)}},
	})
	d := haggle(t, path)
	for _, opt := range []uint32{optListMeta, optSetMeta} {
		_, err := d.names(t, opt, "d@2", ContextAllocation)
		var oe *OptionError
		if !errors.As(err, &oe) || oe.Code != repErrInvalid {
			t.Errorf("option %d before structured replies: %v", opt, err)
		}
	}
	must(t, d.send(optStructured, []byte{1}))
	_, _, err := d.reply(optStructured)
	var oe *OptionError
	if !errors.As(err, &oe) || oe.Code != repErrInvalid {
		t.Errorf("STRUCTURED_REPLY with data: %v", err)
	}
	must(t, d.send(optStructured, nil))
	_, _, err = d.reply(optStructured)
	must(t, err)
	for _, tc := range []struct {
		opt     uint32
		queries []string
		want    []string
	}{
		{optListMeta, nil, []string{ContextAllocation, ContextDirty, "x-other:a"}},
		{optListMeta, []string{"base:"}, []string{ContextAllocation}},
		{optListMeta, []string{"x-other:", "x-other:a", "qemu:"}, []string{"x-other:a"}},
		{optListMeta, []string{"", "base", "base:allocatio"}, nil},
		{optSetMeta, nil, nil},
		{optSetMeta, []string{"base:"}, nil},
		{optSetMeta, []string{ContextDirty, "y:z", ContextAllocation, ContextDirty}, []string{ContextAllocation, ContextDirty}},
	} {
		got, err := d.names(t, tc.opt, "d@2", tc.queries...)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("option %d, %q: %q, %v, want %q", tc.opt, tc.queries, got, err, tc.want)
		}
	}
	_, err = d.names(t, optSetMeta, "d@1", ContextAllocation)
	wantErr(t, "another generation", err, ErrPolicy)
	_, err = d.names(t, optListMeta, "e")
	wantErr(t, "another export", err, ErrUnknownExport)
	for name, data := range map[string][]byte{
		"nothing":             {},
		"a name beyond":       {0, 0, 0, 9, 'd'},
		"a long name":         append([]byte{0, 0, 0x10, 1}, make([]byte, 5000)...),
		"no count":            {0, 0, 0, 3, 'd', '@', '2'},
		"a count too many":    {0, 0, 0, 3, 'd', '@', '2', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 'a'},
		"a query beyond":      {0, 0, 0, 3, 'd', '@', '2', 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff, 'a'},
		"something after all": {0, 0, 0, 3, 'd', '@', '2', 0, 0, 0, 0, 0},
	} {
		must(t, d.send(optSetMeta, data))
		_, _, err := d.reply(optSetMeta)
		if !errors.As(err, &oe) || oe.Code != repErrInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A selection that was refused has ended the one before it.
	info, err := d.choose("d@2")
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	d.structured, d.contexts = true, []clientContext{{ContextAllocation, 1}}
	c := newClient(d, info, cfg)
	defer c.Close()
	wantErr(t, "block status of nothing selected", c.Extents(0, 8192, func(int64, uint32) bool { return true }), syscall.EINVAL)
}

func TestContextsAreThoseOfTheExportThatWasNamed(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "a", Disk: newRAM(4096)}, ExportConfig{Name: "b", Disk: newRAM(4096)})
	d := haggle(t, path)
	must(t, d.structuredReplies("a", nil))
	info, err := d.choose("b")
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	c := newClient(d, info, cfg)
	defer c.Close()
	wantErr(t, "block status", c.Extents(0, 4096, func(int64, uint32) bool { return true }), syscall.EINVAL)
	_, err = c.ReadAt(make([]byte, 512), 0)
	must(t, err)
}

func TestContextsOfAnExportMustHaveNamesOfTheirOwn(t *testing.T) {
	long := "x-" + strings.Repeat("a", maxName) + ":b"
	for _, names := range [][]string{{""}, {"a"}, {":a"}, {"a:"}, {ContextAllocation}, {"x-a:b", "x-a:b"}, {long}, make([]string, maxContexts)} {
		var all []Context
		for i, name := range names {
			if len(names) == maxContexts {
				name = "x-a:" + string(rune('a'+i))
			}
			all = append(all, Context{name, striped(1)})
		}
		if _, err := NewServer(ServerConfig{}).Export(ExportConfig{Disk: newRAM(512), Contexts: all}); err == nil {
			t.Errorf("%.50q is let through", names)
		}
	}
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(512)})
	for _, names := range [][]string{{ContextAllocation}, {long}, make([]string, maxContexts)} {
		if _, err := Dial(context.Background(), "unix", path, ClientConfig{Contexts: names}); err == nil {
			t.Errorf("a client that asks for %.50q is let through", names)
		}
	}
}

func TestBlockStatusOfSeveralContexts(t *testing.T) {
	const size = 1 << 20
	_, _, path := serve(t, ServerConfig{}, ExportConfig{
		Disk: newRAM(size), Contexts: []Context{{ContextDirty, striped(100)}, {"x-other:a", striped(1000)}},
	})
	c := dial(t, path, ClientConfig{Contexts: []string{"x-other:a", "x-not:there", ContextDirty}})
	if got, want := c.Contexts(), []string{ContextAllocation, ContextDirty, "x-other:a"}; !slices.Equal(got, want) {
		t.Errorf("contexts %q, want %q", got, want)
	}
	for _, tc := range []struct {
		context string
		n       int64
	}{{ContextDirty, 100}, {"x-other:a", 1000}} { // of the first there are more than one answer has
		for _, r := range [][2]int64{{0, size}, {50, 999}, {size - 1, 1}, {size, 0}} {
			pos := r[0]
			must(t, c.Status(tc.context, r[0], r[1], func(n int64, flags uint32) bool {
				if want := min(tc.n-pos%tc.n, r[0]+r[1]-pos); n != want || int64(flags) != pos/tc.n {
					t.Fatalf("%s: %d bytes at %d with flags %d, want %d with %d", tc.context, n, pos, flags, want, pos/tc.n)
				}
				pos += n
				return true
			}))
			if pos != r[0]+r[1] {
				t.Errorf("%s: extents of %v end at %d", tc.context, r, pos)
			}
		}
	}
	calls := 0
	must(t, c.Status(ContextDirty, 0, size, func(int64, uint32) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("%d calls of a yield that has enough", calls)
	}
	all := func(int64, uint32) bool { return true }
	wantErr(t, "not there", c.Status("x-not:there", 0, 1, all), errors.ErrUnsupported)
	wantErr(t, "beyond the end", c.Extents(0, size+1, all), ErrRange)
}

func TestRequestsForOneExtentGetOne(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(4096), Contexts: []Context{{ContextDirty, striped(100)}}})
	c := dial(t, path, ClientConfig{Contexts: []string{ContextDirty}})
	answer := statusAnswer{id: 2}
	must(t, c.wait(c.begin(ask{request: request{cmd: cmdBlockStatus, flags: cmdFlagReqOne, off: 50, n: 4000}, status: &answer})))
	if !slices.Equal(answer.extents, []extent{{50, 0}}) {
		t.Errorf("extents %v", answer.extents)
	}
}

func TestWhatAContextYieldsIsCutToTheRequest(t *testing.T) {
	boom := errors.New("boom")
	yields := func(runs ...int64) func(int64, int64, func(int64, uint32) bool) error {
		return func(_, _ int64, yield func(int64, uint32) bool) error {
			for i, n := range runs {
				if n == math.MinInt64 {
					return boom
				}
				yield(n, uint32(i)) // also after it has had enough
			}
			return nil
		}
	}
	for name, tc := range map[string]struct {
		f    func(int64, int64, func(int64, uint32) bool) error
		want []extent
		err  error
	}{
		"too long":        {yields(1000, 1<<40, 5), []extent{{1000, 0}, {3096, 1}}, nil},
		"nothing between": {yields(1000, 0, -5, 96), []extent{{1000, 0}, {96, 3}}, nil},
		"nothing":         {yields(), nil, syscall.EIO},
		"an error":        {yields(1000, math.MinInt64), nil, syscall.EIO},
	} {
		_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(4096), Contexts: []Context{{ContextDirty, tc.f}}})
		c := dial(t, path, ClientConfig{Contexts: []string{ContextDirty}})
		answer := statusAnswer{id: 2}
		err := c.wait(c.begin(ask{request: request{cmd: cmdBlockStatus, n: 4096}, status: &answer}))
		if !errors.Is(err, tc.err) || !slices.Equal(answer.extents, tc.want) {
			t.Errorf("%s: %v, %v", name, answer.extents, err)
		}
		var re *RequestError
		if errors.As(err, &re) && re.Message == "" {
			t.Errorf("%s: no word of why", name)
		}
		must(t, c.Sync()) // the connection goes on
	}
}

// finicky is a disk that can only zero whole blocks of 4096 bytes, or nothing.
type finicky struct {
	*ram
	err    error
	zeroed int
}

func (d *finicky) WriteZeroes(off, n int64) error {
	if d.err != nil || (off|n)%4096 != 0 {
		if d.err == nil {
			return syscall.EINVAL
		}
		return d.err
	}
	d.zeroed++
	return d.ram.WriteZeroes(off, n)
}

func (d *finicky) Trim(off, n int64) error { return d.WriteZeroes(off, n) }

func TestZeroesThatTheDiskCannotMakeAreWritten(t *testing.T) {
	for _, unable := range []error{nil, errors.ErrUnsupported} {
		disk := &finicky{ram: newRAM(64 << 10), err: unable}
		for i := range disk.data {
			disk.data[i] = 7
		}
		_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
		c := dial(t, path, ClientConfig{})
		must(t, c.WriteZeroes(512, 512))
		must(t, c.Trim(8192+512, 512))
		must(t, c.WriteZeroes(16384, 8192))
		for i, b := range disk.data {
			in := i >= 512 && i < 1024 || i >= 8704 && i < 9216 || i >= 16384 && i < 24576
			if in != (b == 0) {
				t.Fatalf("byte %d is %d", i, b)
			}
		}
		if (disk.zeroed == 1) != (unable == nil) {
			t.Errorf("the disk zeroed %d ranges itself", disk.zeroed)
		}
	}
	disk := &finicky{ram: newRAM(4096), err: syscall.EROFS}
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	wantErr(t, "an error of another kind", c.WriteZeroes(0, 4096), syscall.EIO)
}

func TestTrimsOfAClientAreCutToTheServersBlocks(t *testing.T) {
	disk := newRAM(64 << 10)
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	c.info.MinBlock = 4096
	for i := range disk.data {
		disk.data[i] = 7
	}
	must(t, c.Trim(512, 512)) // inside of a block
	must(t, c.Trim(4096+512, 8192))
	wantErr(t, "beyond the end", c.Trim(64<<10-512, 1024), ErrRange)
	wantErr(t, "before the beginning", c.Trim(-512, 1024), ErrRange)
	for i, b := range disk.data {
		if in := i >= 8192 && i < 12288; in != (b == 0) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	for _, part := range [][2]int{{512, 512}, {512, 4096}, {4096, 512}, {4096, 4096 + 512}} {
		off, n := int64(part[0]), part[1]
		_, err := c.ReadAt(make([]byte, n), off)
		wantErr(t, "a read of a part of a block", err, ErrAlignment)
		_, err = c.WriteAt(make([]byte, n), off)
		wantErr(t, "a write of it", err, ErrAlignment)
		wantErr(t, "zeroes for it", c.WriteZeroes(off, int64(n)), ErrAlignment)
	}
}

func TestWhatWasSelectedInTheClearIsForgottenUnderTLS(t *testing.T) {
	scfg, ccfg := certificates(t)
	_, _, path := serve(t, ServerConfig{TLS: scfg}, ExportConfig{Disk: newRAM(4096)})
	d := haggle(t, path)
	must(t, d.structuredReplies("", nil))
	must(t, d.startTLS(context.Background(), ccfg))
	_, err := d.names(t, optListMeta, "")
	var oe *OptionError
	if !errors.As(err, &oe) || oe.Code != repErrInvalid {
		t.Errorf("contexts without structured replies: %v", err)
	}
	d.structured, d.contexts = false, nil
	must(t, d.structuredReplies("", nil))
	if len(d.contexts) != 1 {
		t.Errorf("contexts %v", d.contexts)
	}
}
