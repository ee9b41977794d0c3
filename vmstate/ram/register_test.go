package ram_test

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func TestBothRolesRegisterThemselves(t *testing.T) {
	if e := ram.Entry(); e.Name != "ram" || e.Instance != 0 || e.Version != 4 || e.MinVersion != 4 {
		t.Errorf("%+v, want what QEMU calls it", e)
	}
	blocks := []ram.Block{{Name: "b", Host: make([]byte, ram.PageSize)}}
	saver := ram.NewSaver(blocks, nil, ram.SaverConfig{})
	cache, err := ram.NewCache(blocks, nil, ram.CacheConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	for name, register := range map[string]func(*vmstate.Registry) error{"saver": saver.Register, "cache": cache.Register} {
		var reg vmstate.Registry
		if err := register(&reg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := errors.Join(reg.RegisterLive(ram.Entry(), saver, nil)); err == nil {
			t.Errorf("%s: it is not registered under the entry", name)
		}
	}
}
