package profile

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"runtime/pprof"
	"time"
)

// A Sample is some of the process's time, and where it went.
type Sample struct {
	Stack  []string          // the functions, by their full names; the one that ran comes first
	Time   time.Duration     // with what the kernel did for it
	Labels map[string]string // of the goroutine; see pprof.Do
}

// CPU calls fn and returns where the time of all threads went meanwhile. Only one call, and
// no other CPU profile, may be going on.
func CPU(fn func()) ([]Sample, error) {
	var b bytes.Buffer
	if err := pprof.StartCPUProfile(&b); err != nil {
		return nil, err
	}
	func() {
		defer pprof.StopCPUProfile()
		fn()
	}()
	z, err := gzip.NewReader(&b)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	return decode(raw)
}

// The numbers of the fields that are read here, of the messages of pprof's profile.proto.
const (
	profileSample, profileLocation, profileFunction, profileStrings = 2, 4, 5, 6

	sampleLocations, sampleValues, sampleLabels = 1, 2, 3

	labelKey, labelText          = 1, 2
	locationID, locationLine     = 1, 4
	lineFunction                 = 1
	functionID, functionName     = 1, 2
	nanoseconds, valuesPerSample = 1, 2 // each sample has a count and a time
)

// decode reads a profile.
func decode(raw []byte) (samples []Sample, err error) {
	var strings []string
	functions := map[uint64]uint64{}   // ID to name
	locations := map[uint64][]uint64{} // ID to functions, inlined ones first
	var found []message
	err = fields(raw, func(f field) error {
		switch f.number {
		case profileStrings:
			strings = append(strings, string(f.bytes))
		case profileSample, profileFunction, profileLocation:
			m, err := parse(f.bytes)
			if err != nil {
				return err
			}
			switch f.number {
			case profileSample:
				found = append(found, m)
			case profileFunction:
				functions[m.number(functionID)] = m.number(functionName)
			case profileLocation:
				for _, l := range m[locationLine] {
					line, err := parse(l.bytes)
					if err != nil {
						return err
					}
					id := m.number(locationID)
					locations[id] = append(locations[id], line.number(lineFunction))
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	text := func(i uint64) string {
		if i < uint64(len(strings)) {
			return strings[i]
		}
		err = fmt.Errorf("profile: string %d of %d", i, len(strings))
		return ""
	}
	for _, m := range found {
		var s Sample
		at, e1 := m.numbers(sampleLocations)
		values, e2 := m.numbers(sampleValues)
		if e1 != nil || e2 != nil || len(values) != valuesPerSample {
			return nil, fmt.Errorf("profile: a sample of %d values: %v, %v", len(values), e1, e2)
		}
		s.Time = time.Duration(values[nanoseconds])
		for _, l := range at {
			for _, f := range locations[l] {
				s.Stack = append(s.Stack, text(functions[f]))
			}
		}
		for _, l := range m[sampleLabels] {
			label, e := parse(l.bytes)
			if e != nil {
				return nil, e
			}
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[text(label.number(labelKey))] = text(label.number(labelText))
		}
		samples = append(samples, s)
	}
	return samples, err
}
