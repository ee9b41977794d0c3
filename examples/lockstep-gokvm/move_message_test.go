package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/iotest"
)

// wholeMoveHello is a moveHello that has everything.
var wholeMoveHello = moveHello{
	Version: moveVersion, Guest: "db 1", Move: "ABCDEFGH", Again: true, Machine: machineType, Memory: 1 << 30, VCPUs: 2,
	Card: true, Header: 12, Disk: 1 << 20, CPU: []byte{1, 2, 3}, Postcopy: true,
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeMessage(&b, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAMessageOfAMoveIsReadWholeOrNotAtAll(t *testing.T) {
	message := encoded(t, wholeMoveHello)
	for cut := range message {
		var got moveHello
		err := readMessage(iotest.OneByteReader(bytes.NewReader(message[:cut])), &got)
		want := io.ErrUnexpectedEOF
		if cut == 0 {
			want = io.EOF
		}
		if !errors.Is(err, want) || !reflect.DeepEqual(got, moveHello{}) {
			t.Errorf("%d of %d bytes: %v, %+v", cut, len(message), err, got)
		}
	}
	r := bytes.NewReader(append(bytes.Clone(message), "what follows"...))
	var got moveHello
	if err := readMessage(r, &got); err != nil || !reflect.DeepEqual(got, wholeMoveHello) || r.Len() != len("what follows") {
		t.Errorf("%+v, %v; %d bytes are left", got, err, r.Len())
	}
}

// A byte that is changed makes another message, or none. Nothing is read beyond it.
func TestAMessageOfAMoveWithAChangedByteIsAnotherOrNone(t *testing.T) {
	message := encoded(t, wholeMoveHello)
	for at := range message {
		for _, with := range []byte{0, 0xff, message[at] ^ 1, message[at] ^ 0x80, '"', '}', '9'} {
			checkMoveMessage(t, append(append(append(bytes.Clone(message[:at]), with), message[at+1:]...), "what follows"...))
		}
	}
}

func TestAMessageOfAMoveThatIsTooLongIsRefusedBeforeItIsRead(t *testing.T) {
	for _, size := range []uint32{maxMoveHello, maxMoveHello + 1, 1 << 31, 1<<32 - 1} {
		text := bytes.Repeat([]byte{' '}, maxMoveHello+1)
		copy(text, "{}")
		r := bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, size), text...))
		var got moveHello
		err := readMessage(r, &got)
		if taken := len(text) - r.Len(); size > maxMoveHello && (!errors.Is(err, errLanguage) || taken != 0) || size == maxMoveHello && err != nil {
			t.Errorf("%d bytes: %v, after %d of them", size, err, taken)
		}
	}
}

// checkMoveMessage reads bytes as a moveHello and as a moveAnswer: what is read can be written and is the same again.
func checkMoveMessage(t *testing.T, b []byte) {
	t.Helper()
	for _, v := range []any{new(moveHello), new(moveAnswer)} {
		r := bytes.NewReader(b)
		err := readMessage(r, v)
		if end := 4; len(b) >= end {
			size := binary.BigEndian.Uint32(b)
			if size <= maxMoveHello {
				end += int(size)
			}
			if taken := len(b) - r.Len(); taken != min(end, len(b)) {
				t.Errorf("%q: %d bytes are read of a message of %d: %v", b, taken, end, err)
			}
		}
		if err != nil {
			continue
		}
		again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := readMessage(bytes.NewReader(encoded(t, v)), again); err != nil || !bytes.Equal(encoded(t, v), encoded(t, again)) {
			t.Errorf("%q: %+v, then %+v, %v", b, v, again, err)
		}
	}
}

func FuzzMoveMessage(f *testing.F) {
	f.Add(encoded(f, wholeMoveHello))
	f.Add(encoded(f, moveAnswer{State: movedNot, Refused: "the guest has -mem 1G, here it is 2G"}))
	f.Add([]byte{0, 0, 0, 4, 'n', 'u', 'l', 'l', '{'})
	f.Fuzz(func(t *testing.T, b []byte) { checkMoveMessage(t, b) })
}
