package protect

import "fmt"

// failed returns why this host's copy is not to be trusted any more: it could not
// make stable what was written to it, and part of that may be gone.
func (d *Disk) failed() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.failure()
}

// failure does what failed does, with d.mu held.
func (d *Disk) failure() error {
	var err error
	switch {
	case d.lost != nil:
		return d.lost
	case d.secondary != nil:
		err = d.secondary.LocalErr()
	case d.primary != nil:
		err = d.primary.LocalErr()
	}
	if err != nil {
		err = fmt.Errorf("disk %q: %w", d.cfg.Name, err)
	}
	return err
}

// keepFailure keeps what is known of the image when what stands below changes. d.mu is
// held for writing.
func (d *Disk) keepFailure() { d.lost = d.failure() }

// diskFailed returns why this host's copy of the guest's disks is not to be trusted. A
// primary must leave its guest to a secondary that is in step: the checkpoint there has
// a disk that is good. A host that waits follows nobody.
func (j *Job) diskFailed() error {
	for _, d := range j.cfg.Disks {
		if err := d.failed(); err != nil {
			return err
		}
	}
	return nil
}
