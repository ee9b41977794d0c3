package main

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/replication"
)

// diskName is the name of the disk: that of its export, which a secondary serves each
// primary with another generation in its name, and that in the events.
const diskName = "disk"

// identityName is the export that says whose copy a secondary has, and takes the identity of
// a primary; it is served like the disk.
const identityName = "identity"

// printIdentities prints what is durably known of images, which may be in use.
func printIdentities(files []string, p *printer) error {
	var errs []error
	for _, name := range files {
		i, err := replication.ReadIdentity(name)
		if errors.Is(err, errors.ErrUnsupported) {
			err = fmt.Errorf("%w (say \"status\" to it)", err)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		said := map[string]any{
			"image": name, "disk": i.Disk.String(), "copy": i.Copy.String(), "generation": i.Generation.String(),
			"state": i.State.String(), "writes": i.Writes,
		}
		if i.State != replication.CopyInconsistent && !i.Writes {
			said["epoch"] = i.Epoch // of the checkpoint at which the copy stands
		}
		p.returned(said, "%s: %v", name, i)
	}
	return errors.Join(errs...)
}

// bind says that an image and its metadata belong together.
func bind(name string) error {
	f, err := replication.OpenFile(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Rebind(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// status is the answer to the command of that name. Sizes are in bytes.
type status struct {
	State   string `json:"state"`
	Epoch   uint64 `json:"epoch"`
	Missing *int64 `json:"missing,omitempty"` // on a primary: what the secondary does not have
	Active  *int64 `json:"active,omitempty"`  // on a secondary: what the overlays take
	Hidden  *int64 `json:"hidden,omitempty"`
	Error   string `json:"error,omitempty"`
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// trouble returns what a status line says of an error behind the rest; nothing where there is none.
func trouble(err error) string {
	if err == nil {
		return ""
	}
	return ", error " + err.Error()
}
