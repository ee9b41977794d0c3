package main

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/replication"
)

// errNotWaiting means that an image does not wait for the generation, so that hold changes
// nothing.
var errNotWaiting = errors.New("it does not wait for that generation")

// hold records on the images of one guest that they are its disks of generation. That is
// an operator's word, after a change of the sides whose new primary is lost for good: the
// disks of the host that gave the guest away are those of the last checkpoint, and say
// that they are of the generation before. All are looked at before any is changed.
func hold(files []string, generation uint64, p *printer) error {
	type image struct {
		name string
		meta *replication.Metadata
	}
	var images []image
	for _, name := range files {
		f, err := replication.OpenFile(name)
		if err != nil {
			return err
		}
		defer f.Close()
		m, err := f.Metadata()
		if err == nil {
			err = mayHold(m, generation)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		images = append(images, image{name, m})
	}
	for _, i := range images {
		was := i.meta.Held()
		if err := i.meta.Hold(generation); err != nil {
			return fmt.Errorf("%s: %w", i.name, err)
		}
		p.returned(map[string]any{"image": i.name, "held": generation, "was": was}, "%s: generation %d, was %d", i.name, generation, was)
	}
	return nil
}

// mayHold refuses an image that is not a whole copy of the generation before, or on which an
// earlier hold was recorded.
func mayHold(m *replication.Metadata, generation uint64) error {
	id, held := m.Identity(), m.Held()
	switch {
	case id.State != replication.CopyClean:
		return fmt.Errorf("%w: it is %v, and starts no guest", errNotWaiting, id.State)
	case held == 0:
		return fmt.Errorf("%w: no host has recorded a generation on it", errNotWaiting)
	case held == generation:
		return nil // recorded by an earlier call that was interrupted
	case held+1 != generation:
		return fmt.Errorf("%w: it is of generation %d, and may be said to be of %d only", errNotWaiting, held, held+1)
	}
	return nil
}
