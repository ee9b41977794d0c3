package vmstate

import (
	"bytes"
)

// RepairVMDesc parses a text that [ParseVMDesc] refuses. It loses the device
// in whose description the text is broken, keeps those before, and goes on with
// the next. A device that is lost keeps its name and instance if they came before
// the damage, and has Broken set. The error is the first one, as ParseVMDesc
// returns it: it says at which byte. It is nil if nothing is wrong.
func RepairVMDesc(text []byte) (*VMDesc, error) {
	d, first := parseVMDesc(text)
	if first == nil {
		return d, nil
	}
	done := len(d.Devices)
	for rest := text; len(d.Devices) < maxRepaired; {
		// QEMU begins each device, and nothing else, with these two keys.
		begin, end := nextDevice(rest)
		if begin < 0 {
			break
		}
		body := rest[begin:end]
		rest = rest[end:]
		if done > 0 {
			done-- // this one was read
			continue
		}
		p := newDescParser(body)
		dev := p.device()
		if p.err != nil {
			dev = DeviceDesc{Name: dev.Name, Instance: dev.Instance, Size: -1, Broken: first}
		}
		if dev.Name != "" {
			d.Devices = append(d.Devices, dev)
		}
	}
	return d, first
}

// maxRepaired bounds the devices of a repaired description.
const maxRepaired = 1 << 14

// nextDevice finds the description of a device in text: where it begins, and
// where the next one does.
func nextDevice(text []byte) (begin, end int) {
	if begin = deviceStart(text, 0); begin < 0 {
		return -1, 0
	}
	if end = deviceStart(text, begin+1); end < 0 {
		end = len(text)
	}
	return begin, end
}

var (
	deviceName     = []byte(`{"name": "`)
	deviceInstance = []byte(`"instance_id": `)
)

// deviceStart finds the first device that begins at from or later, or -1.
func deviceStart(text []byte, from int) int {
	for from < len(text) {
		i := bytes.Index(text[from:], deviceName)
		if i < 0 {
			return -1
		}
		from += i
		name := text[from+len(deviceName):]
		// What follows the name tells a device from a field.
		if q := bytes.IndexByte(name[:min(len(name), 512)], '"'); q >= 0 {
			if bytes.HasPrefix(bytes.TrimLeft(name[q+1:min(len(name), q+8)], ", "), deviceInstance[:4]) {
				return from
			}
		}
		from++
	}
	return -1
}
