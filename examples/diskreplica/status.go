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

// printCopies prints what is durably known of images, and of the journal, if one is named. All of them may be in use.
func printCopies(files []string, journal string, p *printer) error {
	var errs []error
	for _, name := range files {
		r, err := replication.ReadCopy(name)
		if errors.Is(err, errors.ErrUnsupported) {
			err = fmt.Errorf("%w (say \"status\" to it)", err)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		i := r.Identity
		said := map[string]any{
			"image": name, "disk": i.Disk.String(), "copy": i.Copy.String(), "generation": i.Generation.String(),
			"state": i.State.String(), "writes": i.Writes,
		}
		line := fmt.Sprintf("%s: %v", name, i)
		if i.State != replication.CopyInconsistent && !i.Writes {
			said["epoch"] = i.Epoch // of the checkpoint at which the copy stands
		}
		if r.Held > 0 {
			said["held"] = r.Held
			line += fmt.Sprintf(", holds generation %d of the arbiter", r.Held)
		}
		if r.Journal != (replication.ID{}) {
			said["journal"] = r.Journal.String()
			line += fmt.Sprintf(", changed with journal %v", r.Journal)
		}
		if r.Secondary != (replication.ID{}) {
			said["secondary"], said["marked"] = r.Secondary.String(), r.Marked
			line += fmt.Sprintf("; its secondary %v may lack %d KiB", r.Secondary, kib(r.Marked))
		}
		locked, text := lock(name)
		said["locked"] = locked
		p.returned(said, "%s", line+text)
	}
	if journal == "" {
		return errors.Join(errs...)
	}
	r, err := replication.ReadJournal(journal)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	locked, text := lock(journal + ".hidden")
	said := map[string]any{
		"journal": journal, "name": r.Name.String(), "state": r.State.String(), "epoch": r.Epoch, "prepared": r.Prepared,
		"copy": r.Identity.Copy.String(), "own": r.Own, "alone": r.Alone, "locked": locked,
	}
	p.returned(said, "%s: journal %v of copy %v, %v at epoch %d, prepared for %d, %d blocks of the guest's own%s",
		journal, r.Name, r.Identity.Copy, r.State, r.Epoch, r.Prepared, r.Own, text)
	return errors.Join(errs...)
}

// lock returns who has a file locked: false, true, or the number of the process; and a text for people.
func lock(name string) (who any, said string) {
	locked, pid, err := replication.LockedBy(name)
	switch {
	case err != nil || !locked:
		return false, ""
	case pid == 0:
		return true, ", in use"
	}
	return pid, fmt.Sprintf(", in use by process %d", pid)
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
