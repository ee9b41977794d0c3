package main

import (
	"context"
	"errors"
	"strings"

	"github.com/gocolo/lockstep/event/qmp"
)

// A guest's output is held where its QEMU has a colo-compare without a second guest: what a
// filter-redirector takes to it waits there until a secondary has a checkpoint, and a guest
// that is brought back has said nothing that it does not know. Without a secondary there
// are no checkpoints, and nothing would leave any more: so the redirectors are on while the
// guest is protected, and off, which lets everything pass them, at all other times.

// maxObjects bounds the objects of a QEMU that are looked at.
const maxObjects = 1 << 12

// outputFilters returns the filter-redirectors that take what the guest sends out of its
// network to a colo-compare, by their ids; none where the QEMU has no colo-compare.
func outputFilters(ctx context.Context, m *qmp.Client) (list []string, err error) {
	var objects []struct{ Name, Type string }
	var refused *qmp.Error
	if err := m.Do(ctx, "qom-list", map[string]string{"path": "/objects"}, &objects); err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	compares := false
	for i, x := range objects {
		if i == maxObjects {
			break
		}
		switch strings.TrimSuffix(strings.TrimPrefix(x.Type, "child<"), ">") {
		case "colo-compare":
			compares = true
		case "filter-redirector":
			var queue, outdev string
			for property, value := range map[string]*string{"queue": &queue, "outdev": &outdev} {
				// One that is deleted just now is refused.
				if err := m.Do(ctx, "qom-get", map[string]string{"path": "/objects/" + x.Name, "property": property}, value); err != nil && !errors.As(err, &refused) {
					return nil, err
				}
			}
			if queue == "rx" && outdev != "" {
				list = append(list, x.Name)
			}
		}
	}
	if !compares {
		return nil, nil
	}
	return list, nil
}

// holdOutput turns the redirectors of the guest's output on or off, and returns which they
// are.
func holdOutput(ctx context.Context, m *qmp.Client, hold bool) (list []string, err error) {
	if list, err = outputFilters(ctx, m); err != nil {
		return nil, err
	}
	status := "off"
	if hold {
		status = "on"
	}
	for _, id := range list {
		if err := m.Do(ctx, "qom-set", map[string]string{"path": "/objects/" + id, "property": "status", "value": status}, nil); err != nil {
			return nil, err
		}
	}
	return list, nil
}
