package qmp

import (
	"context"
	"reflect"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qjson"
)

// execute answers a request.
func (c *client) execute(r request) {
	if r.err != nil {
		c.out.answer(c.line(failure(nil, false, refuse("%s", r.err))))
		return
	}
	o, _ := r.value.(qjson.Object)
	id, hasID := o.Get("id")
	result, err := c.dispatch(r.value)
	if err != nil {
		c.out.answer(c.line(failure(id, hasID, err)))
		return
	}
	answer := qjson.Object{{Name: "return", Value: result}}
	if hasID {
		answer = append(answer, qjson.Member{Name: "id", Value: id})
	}
	c.out.answer(c.line(answer))
}

func failure(id any, hasID bool, err error) qjson.Object {
	class, desc := classed(err)
	answer := qjson.Object{{Name: "error", Value: qjson.Object{{Name: "class", Value: string(class)}, {Name: "desc", Value: desc}}}}
	if hasID {
		answer = append(answer, qjson.Member{Name: "id", Value: id})
	}
	return answer
}

// dispatch checks a command in QEMU's order and runs it. It answers the first error that
// it finds.
func (c *client) dispatch(v any) (any, error) {
	o, ok := v.(qjson.Object)
	if !ok {
		return nil, refuse("QMP input must be a JSON object")
	}
	var name, verb string
	args := qjson.Object{}
	for _, m := range o.Sorted() {
		switch {
		case m.Name == "execute" || m.Name == "exec-oob" && c.oob:
			if name, ok = m.Value.(string); !ok {
				return nil, refuse("QMP input member '%s' must be a string", m.Name)
			}
			if verb != "" {
				return nil, refuse("QMP input member '%s' clashes with '%s'", m.Name, verb)
			}
			verb = m.Name
		case m.Name == "arguments":
			if args, ok = m.Value.(qjson.Object); !ok {
				return nil, refuse("QMP input member 'arguments' must be an object")
			}
		case m.Name == "id":
		default:
			return nil, refuse("QMP input member '%s' is unexpected", m.Name)
		}
	}
	switch {
	case verb == "":
		return nil, refuse("QMP input lacks member 'execute'")
	case c.negotiated || name == "qmp_capabilities":
	default:
		return nil, &Error{Class: CommandNotFound, Desc: "Expecting capabilities negotiation with 'qmp_capabilities'"}
	}
	cmd := c.own(name)
	if cmd == nil && c.s.Commands != nil {
		cmd = c.s.Commands.get(name)
	}
	switch {
	case cmd == nil:
		return nil, &Error{Class: CommandNotFound, Desc: "The command " + name + " has not been found"}
	case verb == "exec-oob" && !cmd.oob:
		return nil, refuse("The command %s does not support OOB", name)
	}
	return cmd.run(c.ctx, args)
}

// capability names a part of the protocol that a client can enable. (QAPI enum QMPCapability.)
type capability string

// Words implements the enumeration.
func (capability) Words() []string { return []string{"oob"} }

// capabilities has the arguments of qmp_capabilities.
type capabilities struct {
	Enable []capability `json:"enable,omitempty"`
}

// nameAndMeta has the members that all elements of a schema have. (QAPI union SchemaInfo.)
type nameAndMeta struct {
	Name string `json:"name"`
	Meta string `json:"meta-type"`
}

// nameOnly is an element of the answers to query-commands and query-events.
type nameOnly struct {
	Name string `json:"name"`
}

// ownNames are the commands that need no host, but for quit, which needs Quit.
var ownNames = []string{"qmp_capabilities", "query-commands", "query-events", "query-qmp-schema", "query-version", "quit"}

// own returns one of the commands that need no host. They are about the client
// or the Server.
func (c *client) own(name string) *command {
	switch name {
	case "qmp_capabilities":
		return commandOf(c.negotiate)
	case "query-version":
		return answering[versionInfo](commandOf(func(context.Context, None) (qjson.Object, error) { return c.s.version().value(), nil }))
	case "query-commands":
		return commandOf(func(context.Context, None) ([]nameOnly, error) { return c.s.commandNames(), nil })
	case "query-events":
		return commandOf(func(context.Context, None) ([]nameOnly, error) { return eventNames(), nil })
	case "query-qmp-schema":
		return answering[[]nameAndMeta](commandOf(func(context.Context, None) ([]any, error) { return c.s.schema(), nil }))
	case "quit":
		if c.s.Quit != nil {
			return commandOf(c.end)
		}
	}
	return nil
}

// commandOf makes a command that is in no Commands. Its result may be any JSON value.
func commandOf[A, R any](fn func(context.Context, A) (R, error)) *command {
	var c Commands
	Register(&c, "", fn)
	return c.m[""]
}

// answering gives the schema of the result, R, to a command that builds its result by hand.
func answering[R any](c *command) *command {
	c.result = reflect.TypeFor[R]()
	return c
}

func (c *client) negotiate(_ context.Context, a capabilities) (None, error) {
	if c.negotiated {
		return None{}, &Error{Class: CommandNotFound, Desc: "Capabilities negotiation is already complete, command ignored"}
	}
	oob := len(a.Enable) > 0
	if oob && (c.s.Commands == nil || !c.s.Commands.offersOOB()) {
		return None{}, refuse("Capability %s is not available", a.Enable[0])
	}
	c.negotiated, c.oob = true, oob
	c.at.stay()
	c.h.join(c)
	return None{}, nil
}

// end executes quit: the host ends when the client has its answer.
func (c *client) end(context.Context, None) (None, error) {
	c.s.Bus.Publish(event.Shutdown{Reason: event.ShutdownHostQMPQuit})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.quit, c.stop = true, true
	c.changed.Broadcast()
	return None{}, nil
}
