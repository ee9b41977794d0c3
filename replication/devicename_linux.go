package replication

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// deviceName tells a block device from others, whatever its number is after the next start of the system: by
// the name that the device, or the system, has given it for good, and by the number of the partition. It is zero for a device
// without such a name. dir is the directory of block devices in sysfs.
func deviceName(dir string, major, minor uint32) (id [32]byte) {
	dir, err := filepath.EvalSymlinks(filepath.Join(dir, fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return id
	}
	partition, err := os.ReadFile(filepath.Join(dir, "partition"))
	if err == nil {
		dir = filepath.Dir(dir)
	}
	// Volumes and arrays come first, since the others are of the disks below them.
	for _, name := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "uuid", "nguid", "serial", "device/serial", "device/unique_id"} {
		said, err := os.ReadFile(filepath.Join(dir, name))
		if said = bytes.TrimSpace(said); err == nil && len(said) > 0 {
			return sha256.Sum256(fmt.Appendf(nil, "%s %q %q", name, said, bytes.TrimSpace(partition)))
		}
	}
	return id
}
