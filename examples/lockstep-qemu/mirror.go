package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// mirrored is a disk of a QEMU that is to be copied to a standby, and each write
// to it from then on: protect -disk DEVICE=NAME.
type mirrored struct{ device, name string }

func parseMirrored(s string) (d mirrored, err error) {
	var ok bool
	if d.device, d.name, ok = strings.Cut(s, "="); !ok || d.device == "" || d.name == "" {
		return d, fmt.Errorf("%q is not DEVICE=NAME", s)
	}
	return d, nil
}

// node and job return the names of the copy in QEMU.
func (d mirrored) node() string { return "lockstep-" + d.name }

// openTimeout is for how many seconds a QEMU tries to connect to a disk of a standby. It does nothing
// else meanwhile, and its guest stands as soon as it waits for a device; without a bound that
// is for good where a standby hangs, whose kernel accepts the connection: yank does not know of
// it yet. A QEMU before 7.0 has no such bound.
const openTimeout = 5

// mirror begins to copy the disks, and returns when the copies are whole and
// every write goes to both sides before the guest is told that it is done
// (copy-mode write-blocking), for as long as no error stops a job: see whole.
func (o *protectOptions) mirror(ctx context.Context, m *qmp.Client, p *printer) error {
	if err := o.unmirror(ctx, m); err != nil { // what an earlier protection has left
		return err
	}
	for _, d := range o.disks {
		server, err := nbdAddress(o.nbd)
		if err != nil {
			return err
		}
		node := map[string]any{"driver": "nbd", "node-name": d.node(), "server": server, "export": d.name}
		if m.Major >= 7 {
			node["open-timeout"] = openTimeout
		}
		if o.tlsCreds != "" {
			node["tls-creds"] = o.tlsCreds
		}
		if o.tlsHost != "" {
			node["tls-hostname"] = o.tlsHost
		}
		if err := m.Do(ctx, "blockdev-add", node, nil); err != nil {
			return fmt.Errorf("disk %s: %w", d.device, explained(err))
		}
		if err := o.sameSize(ctx, m, d); err != nil {
			return err
		}
		// A job that ends must not take the reason with it; and it must not end by
		// itself. Stopping a guest, as each checkpoint does, flushes its disks one by
		// one, and a job that ends during that has QEMU let go of the node below the
		// job's filter instead of the filter: the disk can never be copied again
		// ("Need a root block node"), and memory is freed that is in use. So an error
		// only stops the job, and unmirror ends it when no checkpoint is under way. What
		// the guest writes from the error on need not be copied, though it may be again
		// when QEMU has connected anew: nobody uses such a copy any more.
		job := map[string]any{
			"job-id": d.node(), "device": d.device, "target": d.node(), "sync": "full", "copy-mode": "write-blocking", "auto-dismiss": false,
			"on-source-error": "stop", "on-target-error": "stop",
		}
		if err := m.Do(ctx, "blockdev-mirror", job, nil); err != nil {
			return fmt.Errorf("disk %s: %w", d.device, explained(err))
		}
	}
	next := time.Now().Add(time.Second)
	for {
		jobs, err := o.jobs(ctx, m)
		if err != nil {
			return err
		}
		whole := true
		for _, d := range o.disks {
			j, ok := jobs[d.node()]
			if !ok || j.ended() {
				return fmt.Errorf("disk %s: the copy ended: %s", d.device, o.reason(ctx, m, d, j))
			}
			if j.Ready && j.Offset == j.Len {
				continue
			}
			whole = false
			if !time.Now().Before(next) {
				p.say("copying     disk %s: %s of %s", d.device, size(j.Offset), size(j.Len))
			}
		}
		if whole {
			return nil
		}
		if !time.Now().Before(next) {
			next = time.Now().Add(time.Second)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// maxPaused bounds the time for which a job may be paused: QEMU itself pauses one for a moment.
const maxPaused = time.Second

// whole refuses copies that may lack something that the guest has written: those
// whose job has ended, or was stopped by an error, or has been paused for maxPaused.
// paused is since when one is, and zero if none is; whole sets it.
func (o *protectOptions) whole(ctx context.Context, m *qmp.Client, paused *time.Time) error {
	if len(o.disks) == 0 {
		return nil
	}
	jobs, err := o.jobs(ctx, m)
	if err != nil {
		return err
	}
	still := false
	for _, d := range o.disks {
		j, ok := jobs[d.node()]
		if !ok || j.ended() {
			return fmt.Errorf("disk %s: the copy ended: %s", d.device, o.reason(ctx, m, d, j))
		}
		if !j.Ready {
			return fmt.Errorf("disk %s: the copy is not whole any more", d.device)
		}
		if !j.Paused {
			continue
		}
		if still = true; paused.IsZero() {
			*paused = time.Now()
		}
		if time.Since(*paused) >= maxPaused {
			return fmt.Errorf("disk %s: the copy is paused", d.device)
		}
	}
	if !still {
		*paused = time.Time{}
	}
	return nil
}

// blockJob is an element of the answer to query-block-jobs.
type blockJob struct {
	Device      string
	Ready       bool
	Paused      bool
	Offset, Len uint64
	Error       string
	Status      string
	IOStatus    string `json:"io-status"` // of a job that an error has stopped
}

// ended reports whether a job has ended.
func (j *blockJob) ended() bool {
	return j.Error != "" || j.Status == "concluded" || j.IOStatus != "" && j.IOStatus != "ok"
}

// reason returns why a job has ended.
func (o *protectOptions) reason(ctx context.Context, m *qmp.Client, d mirrored, j blockJob) string {
	said := j.Error
	switch j.IOStatus {
	case "failed":
		said = "Input/output error"
	case "nospace":
		said = "No space left on device"
	}
	var jobs []struct{ ID, Error string }
	if said == "" && m.Do(ctx, "query-jobs", nil, &jobs) == nil {
		for _, j := range jobs {
			if j.ID == d.node() {
				said = j.Error
			}
		}
	}
	if said == "" {
		return "QEMU does not say why; is the standby there?"
	}
	return said
}

// explained adds to QEMU's refusal to copy a disk what it means, or what can be done about it.
func explained(err error) error {
	var refused *qmp.Error
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "cancelled by timeout") {
		return fmt.Errorf("%w: nobody has answered at -nbd for %d s; does the standby hang?", err, openTimeout)
	}
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "export not available") {
		return fmt.Errorf("%w: the standby has no -disk of that name", err)
	}
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "Cannot find device") {
		return fmt.Errorf("%w: \"lockstep-qemu check\" lists the disks", err)
	}
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "root block node") {
		return fmt.Errorf("%w: -disk names a node that has another one above it; where it does not, this QEMU has kept a part of a job that ended "+
			"while the guest was being stopped, and cannot copy the disk any more: migrate the guest to another QEMU, or start it anew", err)
	}
	return err
}

// sameSize refuses a copy that is not as large as the disk.
func (o *protectOptions) sameSize(ctx context.Context, m *qmp.Client, d mirrored) error {
	var nodes []struct {
		Node  string `json:"node-name"`
		Image struct {
			Size uint64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := m.Do(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	var blocks []struct {
		Device   string
		Inserted *struct {
			Node string `json:"node-name"`
		}
	}
	if err := m.Do(ctx, "query-block", nil, &blocks); err != nil {
		return err
	}
	name := d.device // of a device, or of the node itself
	for _, b := range blocks {
		if b.Device == d.device && b.Device != "" && b.Inserted != nil {
			name = b.Inserted.Node
		}
	}
	sizes := make(map[string]uint64)
	for _, n := range nodes {
		sizes[n.Node] = n.Image.Size
	}
	here, known := sizes[name]
	there, added := sizes[d.node()]
	if known && added && here != there {
		return fmt.Errorf("disk %s has %d bytes, and its copy %s at the standby %d: they must be the same", d.device, here, d.name, there)
	}
	return nil
}

func (o *protectOptions) jobs(ctx context.Context, m *qmp.Client) (map[string]blockJob, error) {
	var list []blockJob
	if err := m.Do(ctx, "query-block-jobs", nil, &list); err != nil {
		return nil, err
	}
	jobs := make(map[string]blockJob)
	for _, j := range list {
		jobs[j.Device] = j
	}
	return jobs, nil
}

// hasLeft waits until a QEMU that was told to leave COLO has, so that the end of a
// block job does not meet what a checkpoint does to the disks: see mirror. It does
// not wait for long: a disk that hangs keeps QEMU in its checkpoint, and it is
// the end of its job that frees it.
func (o *protectOptions) hasLeft(ctx context.Context, m *qmp.Client) {
	if len(o.disks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leavingCOLO)
	defer cancel()
	if o.exited == nil {
		m.Wait(ctx, func(r event.Record) bool { return r.Event.Name() == "COLO_EXIT" })
		return
	}
	for !o.exited() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// leavingCOLO bounds the time in which a QEMU leaves COLO. After it the jobs of its disks are
// ended all the same.
const leavingCOLO = 2 * time.Second

// unmirror ends what mirror has begun, as far as it has come.
func (o *protectOptions) unmirror(ctx context.Context, m *qmp.Client) error {
	jobs, err := o.jobs(ctx, m)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(o.disks, func(d mirrored) bool { j, ok := jobs[d.node()]; return ok && j.Status != "concluded" }) {
		if err := o.standing(ctx, m, func() error { return o.cancelJobs(ctx, m) }); err != nil {
			return err
		}
	}
	var refused *qmp.Error
	for _, d := range o.disks {
		dismissed := false
		for { // the job lets go of it in its own time
			jobs, err := o.jobs(ctx, m)
			if err != nil {
				return err
			}
			j, ok := jobs[d.node()]
			if !ok {
				break
			}
			if j.Status == "concluded" && !dismissed {
				dismissed = true
				err := m.Do(ctx, "job-dismiss", map[string]string{"id": d.node()}, nil)
				if err != nil && !errors.As(err, &refused) {
					return err
				}
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := m.Do(ctx, "blockdev-del", map[string]string{"node-name": d.node()}, nil)
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	return nil
}

func (o *protectOptions) cancelJobs(ctx context.Context, m *qmp.Client) error {
	var refused *qmp.Error
	for _, d := range o.disks {
		err := m.Do(ctx, "block-job-cancel", map[string]any{"device": d.node(), "force": true}, nil)
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	return nil
}

// nbdAddress returns an address as QMP's SocketAddress.
func nbdAddress(addr string) (map[string]string, error) {
	network, address := placeOf(addr)
	if network == "unix" {
		return map[string]string{"type": "unix", "path": address}, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return map[string]string{"type": "inet", "host": host, "port": port}, nil
}
