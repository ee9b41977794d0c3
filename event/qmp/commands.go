package qmp

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/internal/qjson"
)

// Commands are the commands that a monitor knows. The zero Commands is empty; a [Server]
// adds those that need no host. Commands may be registered and used from any
// goroutine, also while a Server serves them.
type Commands struct {
	mu sync.RWMutex
	m  map[string]*command
}

// command is a command of a host, or of the server itself.
type command struct {
	args, result reflect.Type
	run          func(ctx context.Context, args qjson.Object) (any, error)
	oob          bool
}

// None stands for no arguments in a command that takes none, and for no result in one
// that has none.
type None struct{}

// Register adds a command, or replaces the one of its name.
//
// A is a struct: its fields with their json tags are the arguments, and so are those of
// the structs that it embeds. One whose field is a pointer or has the option omitempty or
// omitzero may be left out.
// Fields are strings, bools, integers of any size, floats, slices, structs and
// pointers to them, or any; a string type with a method Words() []string is an
// enumeration of those. The arguments that a client sends are checked before fn is
// called: an argument that is missing, unknown or of another type is refused as in QEMU,
// with its name.
//
// R is the type of the answer, which encoding/json encodes as an object or a list;
// [None] means no answer.
//
// fn is called on a goroutine of the Server, for each client one command at a
// time, for several clients at once; its ctx ends when the client was closed or
// the Server ends, and it must return then. The events that it publishes before
// it returns come before its answer. See [Error] for what it may return.
//
// Register panics if A is no such struct: the fault is in the program.
func Register[A, R any](c *Commands, name string, fn func(ctx context.Context, args A) (R, error)) {
	register(c, name, false, fn)
}

// RegisterOOB is [Register] for a command that may also be executed out of band:
// then it is called at once, while another one of the same client runs. It must
// not block. A Server offers the capability oob if there is such a command.
func RegisterOOB[A, R any](c *Commands, name string, fn func(ctx context.Context, args A) (R, error)) {
	register(c, name, true, fn)
}

func register[A, R any](c *Commands, name string, oob bool, fn func(ctx context.Context, args A) (R, error)) {
	t := reflect.TypeFor[A]()
	if t.Kind() != reflect.Struct {
		panic("qmp: the arguments of " + name + " are no struct")
	}
	checkType(t, name, make(map[reflect.Type]bool))
	c.add(name, &command{args: t, result: reflect.TypeFor[R](), oob: oob, run: func(ctx context.Context, args qjson.Object) (any, error) {
		var a A
		if err := decodeObject("", args, reflect.ValueOf(&a).Elem()); err != nil {
			return nil, err
		}
		r, err := fn(ctx, a)
		if err != nil {
			return nil, err
		}
		return encode(r)
	}})
}

func (c *Commands) add(name string, cmd *command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]*command)
	}
	c.m[name] = cmd
}

func (c *Commands) get(name string) *command {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.m[name]
}

// names returns the names of all commands, sorted.
func (c *Commands) names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.m))
}

// offersOOB reports whether a command may be executed out of band.
func (c *Commands) offersOOB() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, cmd := range c.m {
		if cmd.oob {
			return true
		}
	}
	return false
}

// encode turns an answer into a plain value, by way of its JSON text.
func encode(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return qjson.FromJSON(text)
}
