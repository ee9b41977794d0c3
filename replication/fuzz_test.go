package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// What FuzzRecover puts right before it recovers, so that what comes after a
// check is reached too.
const (
	fixSuper  = 1 << iota // the checksum of the superblock
	fixLog                // magic, number, nonce and checksums of the log's records
	fixMap                // the length and the checksum of the map
	fixSecond             // the superblock is in the second slot, the first is another
)

const fuzzDisk = 64 << 10

// fuzzedDevices makes the two devices of a journal. Only their beginnings are
// given, which keeps inputs short: a superblock, what is in the log, and the
// map of the active device.
func fuzzedDevices(fix byte, super, log, active []byte) (hidden, act *fakeDisk) {
	hidden, act = newFake(minJournal, 0), newFake(minJournal, 0)
	copy(act.data, active)
	var b superblock
	sector := make([]byte, SectorSize)
	copy(sector, super)
	le := binary.LittleEndian
	if fix&fixMap != 0 {
		n := uint64(len(active) / mapEntry)
		le.PutUint64(sector[72:], n)
		le.PutUint32(sector[80:], crc32.Checksum(act.data[:n*mapEntry], castagnoli))
	}
	if fix&fixSuper != 0 {
		copy(sector, superMagic)
		le.PutUint32(sector[superEncoded-4:], crc32.Checksum(sector[:superEncoded-4], castagnoli))
	}
	b.decode(sector)
	if fix&fixSecond != 0 {
		other := b
		other.seq--
		copy(hidden.data, other.encode())
		copy(hidden.data[superSlot:], sector)
	} else {
		copy(hidden.data, sector)
	}
	copy(hidden.data[logStart:], log)
	if fix&fixLog != 0 {
		rest := hidden.data[logStart:]
		for seq := uint64(0); len(rest) >= recordHeader && seq <= uint64(len(log)/recordHeader); seq++ {
			n := int(min(uint64(le.Uint32(rest[4:]))*SectorSize, uint64(len(rest)-recordHeader)))
			le.PutUint32(rest, recordMagic)
			le.PutUint32(rest[4:], uint32(n/SectorSize))
			le.PutUint64(rest[8:], seq)
			copy(rest[16:], b.nonce[:])
			le.PutUint32(rest[40:], crc32.Checksum(rest[recordHeader:recordHeader+n], castagnoli))
			le.PutUint32(rest[recordFields-4:], crc32.Checksum(rest[:recordFields-4], castagnoli))
			rest = rest[recordHeader+n:]
		}
	}
	return hidden, act
}

// FuzzRecover has devices of any content: no panic and no write beyond the
// disk may come of it. A recovery that succeeds has made the journal clean; one
// that fails has not, and fails again; one that is cut off by a power failure,
// and repeated, ends in the same disk.
func FuzzRecover(f *testing.F) {
	running := superblock{seq: 5, state: Running, epoch: 3, size: fuzzDisk, nonce: [16]byte{1, 2, 3}}
	failover := running
	failover.state = Failover
	record := func(block uint64, sectors uint32) []byte {
		p := make([]byte, recordHeader+sectors*SectorSize)
		binary.LittleEndian.PutUint32(p[4:], sectors)
		binary.LittleEndian.PutUint64(p[32:], block)
		for i := range p[recordHeader:] {
			p[recordHeader+i] = byte(i + int(block))
		}
		return p
	}
	entry := func(block uint64, slot uint32, data, zero byte) []byte {
		p := binary.LittleEndian.AppendUint64(nil, block)
		p = binary.LittleEndian.AppendUint32(p, slot)
		return append(p, data, zero, 0, 0)
	}
	log := bytes.Join([][]byte{record(0, 8), record(5, 1), record(3, 3), record(15, 8)}, nil)
	m := bytes.Join([][]byte{entry(0, 0, 0xf0, 0x01), entry(7, 1, 0xff, 0), entry(15, 2, 0, 0xff)}, nil)
	all := byte(fixSuper | fixLog | fixMap)
	f.Add(all, running.encode()[:superEncoded], log, []byte{})
	f.Add(all|fixSecond, failover.encode()[:superEncoded], log, m)
	f.Add(byte(fixSuper|fixLog), failover.encode()[:superEncoded], log, m)
	f.Add(byte(fixSuper), running.encode()[:superEncoded], log[:recordHeader], m)
	f.Add(all, running.encode()[:superEncoded], record(16, 1), []byte{})           // beyond the disk
	f.Add(all, running.encode()[:superEncoded], record(1<<60, 1), []byte{})        // so far that its offset overflows
	f.Add(all, failover.encode()[:superEncoded], []byte{}, entry(15, 1<<31, 1, 0)) // a slot beyond the device
	f.Add(all, failover.encode()[:superEncoded], []byte{}, entry(1<<60, 0, 1, 0))
	for _, b := range []superblock{running, failover} {
		b.print.take(newFake(fuzzDisk, 0), fuzzDisk)
		f.Add(all, b.encode()[:superEncoded], log, m)
		b.print.take(newFake(fuzzDisk, 1), fuzzDisk) // another disk
		f.Add(all, b.encode()[:superEncoded], log, m)
	}
	f.Fuzz(func(t *testing.T, fix byte, super, log, active []byte) {
		if len(super) > SectorSize || len(log) > 16<<10 || len(active) > 4<<10 {
			return
		}
		ctx := context.Background()
		hidden, act := fuzzedDevices(fix, super, log, active)
		j, err := OpenJournal(hidden, act)
		if err != nil {
			return
		}
		disk := newFake(fuzzDisk, 0)
		before, was := j.State()
		epoch, _, err := j.Recover(ctx, disk)
		if err != nil {
			if j.Clean() {
				t.Fatalf("clean after a recovery that failed: %v", err)
			}
			if _, _, err := j.Recover(ctx, disk); err == nil {
				t.Fatal("recovered at the second attempt")
			}
			return
		}
		if !j.Clean() || epoch != was {
			t.Fatalf("recovered epoch %d of %d, %v", epoch, was, j)
		}
		if before == None || before == Done {
			return
		}
		if before == Failover {
			for m := act.data[:j.super.entries*mapEntry]; len(m) > 0; m = m[mapEntry:] {
				if block := binary.LittleEndian.Uint64(m); m[12]|m[13] != 0 && block >= fuzzDisk/BlockSize {
					t.Fatalf("recovered with a write to block %d, of %d", block, fuzzDisk/BlockSize)
				}
			}
		}
		rng := rand.New(rand.NewPCG(uint64(len(log)), uint64(fix)))
		host := &power{left: 1 + rng.IntN(12)}
		hidden, act = fuzzedDevices(fix, super, log, active)
		again := [3]*fakeDisk{hidden.again(), act.again(), newPoweredFake(make([]byte, fuzzDisk))}
		for {
			for _, d := range again {
				d.power = host
			}
			j, err := OpenJournal(again[0], again[1])
			if err == nil {
				_, _, err = j.Recover(ctx, again[2])
			}
			if err == nil {
				break
			}
			if !errors.Is(err, errPower) {
				t.Fatalf("recovery after a power failure: %v", err)
			}
			for i, d := range again {
				again[i] = d.cutPower(rng)
			}
			host = &power{left: -1}
		}
		if !bytes.Equal(again[2].data, disk.data) {
			t.Fatal("a recovery that was cut off ends in another disk")
		}
	})
}
