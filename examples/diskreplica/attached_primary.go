package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// visit is a primary's stay: what is served to it, from its hello to the end of its control
// connection. Until the disk has adopted the primary's identity its writes are refused, and
// the primary that was there before goes on undisturbed.
type visit struct {
	s              *secondary
	conn           net.Conn    // for control
	generation     uint64      // of its exports
	disk, identity *nbd.Export // nil before the hello
	until          time.Time   // when the connection of a primary that the disk has not adopted ends; zero: not set yet
}

// arm gives the control connection the deadline for the primary's next line, which is one for
// all lines before the adoption: who only talks would otherwise keep others out. No lock is held.
func (v *visit) arm() {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	switch {
	case v.s.present == v:
		v.until = time.Time{}
	case v.until.IsZero():
		v.until = time.Now().Add(helloTimeout)
	}
	v.conn.SetReadDeadline(v.until)
}

// clients is how many connections a primary may have to its export: a second one takes the place of the
// first when the disk has grown.
const clients = 2

// hello serves the disk and its identity to a primary, under a generation of their own. The
// caller holds s.mu.
func (v *visit) hello(ctx context.Context) (string, error) {
	if v.disk != nil {
		return "", errors.New("hello was said already")
	}
	s := v.s
	s.generation++
	v.generation = s.generation
	var err error
	v.disk, err = s.srv.Export(nbd.ExportConfig{Name: nbd.Name(diskName, s.generation), Disk: s.disk.Export(), MaxClients: clients, Description: "what the primary writes"})
	if err == nil {
		err = v.disk.Gate(ctx)
	}
	if err == nil {
		v.identity, err = s.srv.Export(nbd.ExportConfig{
			Name: nbd.Name(identityName, s.generation), Disk: adopter{replication.NewIdentityDisk(s.disk), ctx, v},
			MaxClients: clients, Description: "whose copy the secondary disk is",
		})
	}
	if err != nil {
		return "", err
	}
	s.printf("a primary of generation %d", s.generation)
	return fmt.Sprintf("export %s %s", v.disk.WireName(), v.identity.WireName()), nil
}

// adopter is the identity of the secondary's disk, for one primary.
type adopter struct {
	replication.IdentityDisk
	ctx context.Context
	v   *visit
}

// WriteAt has the disk adopt an identity. If it does, the primary that was there before is
// fenced off, before the answer, and this one may write.
func (d adopter) WriteAt(p []byte, off int64) (int, error) {
	s := d.v.s
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := d.IdentityDisk.WriteAt(p, off)
	if err != nil {
		return n, err
	}
	if s.present != nil && s.present != d.v {
		if err := s.present.disk.Close(d.ctx); err != nil {
			return 0, err
		}
	}
	s.present = d.v
	d.v.conn.SetReadDeadline(time.Time{}) // it may synchronise for hours
	d.v.disk.Open()
	return n, nil
}

// leave ends what is served to the primary, if it was never adopted; otherwise it may still
// write, until there is another. No lock is held.
func (v *visit) leave(ctx context.Context) {
	v.s.mu.Lock()
	present := v.s.present == v
	v.s.mu.Unlock()
	if present && ctx.Err() == nil {
		v.s.printf("the primary of generation %d has ended its connection; it may come back, and failover goes on without it", v.generation)
	}
	if v.identity != nil {
		v.identity.Close(ctx)
	}
	if v.disk != nil && !present {
		v.disk.Close(ctx)
	}
}
