package protect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/replication"
)

// kept is a disk whose metadata is kept beside it, as replication.MetadataKeeper has it.
type kept struct {
	replication.Disk
	m *replication.Metadata
}

func (k kept) Metadata() (*replication.Metadata, error) { return k.m, nil }

// replicated returns metadata of a disk that has had a copy: it names the disk, and says whether
// it is the copy of the guest or of a secondary.
func replicated(at *memory, guest bool) (*replication.Metadata, error) {
	for p := at.b; len(p) >= 4096; p = p[4096:] {
		p := p[:512]
		if p[0] == 0 {
			continue
		}
		p[24] = 1 // the first byte of the disk's ID
		if guest {
			p[24+32+7*16+8+1] = 1 // after its own ID, its history, its epoch and state
		}
		sum := crc32.Checksum(p[:508], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(p[508:], sum)
	}
	return replication.OpenMetadata(at)
}

// A guest that was saved goes on over its disks of that moment, and no others: neither
// older ones, of before or of a host that followed, nor what another life has made of
// them. Of disks without metadata whoever restores the guest is believed.
func TestASavedGuestGoesOnOverTheDisksOfThatMomentOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		held, disk uint64
		starts     bool
	}{{3, 3, true}, {3, 2, false}, {3, 4, false}, {3, 0, true}} {
		t.Run(fmt.Sprintf("of generation %d over disks of %d", c.held, c.disk), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if err := w.begun(t.Context(), c.held); err != nil {
					t.Fatal(err)
				}
				m, err := replication.OpenMetadata(&memory{b: make([]byte, metadataBytes)})
				if err == nil && c.disk > 0 {
					err = m.Hold(c.disk)
				}
				if err != nil {
					t.Fatal(err)
				}
				d, err := NewDisk(DiskConfig{Name: "root", Image: kept{&image{b: make([]byte, diskSize)}, m}})
				if err != nil {
					t.Fatal(err)
				}
				a := w.boot("a", true, func(cfg *Config) { cfg.Held, cfg.Disks = c.held, []*Disk{d} })
				if c.starts {
					a.is(Alone)
					if h := m.Held(); h != c.held+1 {
						t.Errorf("the disk is of generation %d", h)
					}
				} else {
					a.is(Waiting)
					if err := a.job.Query().LastError; !errors.Is(err, errCopy) {
						t.Error(err)
					}
				}
				a.halt()
			})
		})
	}
}
