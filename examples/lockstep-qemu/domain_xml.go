package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// element is an element of a libvirt domain's XML. Each part that the translation reads is
// marked as taken; the parts that are not taken in the end were not understood, and are named
// to the user.
type element struct {
	name  string
	line  int
	attrs []attribute
	text  string
	kids  []*element
	taken bool // the translation has used the element itself
	told  bool // the translation has used the element's text
}

// attribute has a name and a value in the tag of an element; taken says that the translation
// has used it.
type attribute struct {
	name, value string
	taken       bool
}

// Bounds of a domain's XML: in bytes, in depth, in elements, and in bytes of a name space.
const (
	maxDomain         = 1 << 20
	maxDomainDepth    = 32
	maxDomainElements = 1 << 14
	maxNameSpace      = 1 << 8
)

var errDomain = errors.New("no domain's XML")

// readDomain reads a domain's XML, within bounds.
func readDomain(r io.Reader) (*element, error) {
	limited := &io.LimitedReader{R: r, N: maxDomain + 1}
	d := xml.NewDecoder(limited)
	// Of an element that is not closed yet; its text comes in pieces, around comments.
	type opened struct {
		*element
		raw []byte
	}
	root := &element{}
	open, n := []opened{{element: root}}, 0
	for {
		token, err := d.Token()
		line, _ := d.InputPos()
		switch {
		case limited.N <= 0:
			return nil, fmt.Errorf("%w: it has more than %d bytes", errDomain, maxDomain)
		case err == io.EOF:
			if len(root.kids) != 1 || root.kids[0].name != "domain" {
				return nil, fmt.Errorf("%w: its first element is not domain", errDomain)
			}
			return root.kids[0], nil
		case err != nil:
			return nil, fmt.Errorf("%w: %w", errDomain, err)
		}
		last := &open[len(open)-1]
		switch t := token.(type) {
		case xml.StartElement:
			if n++; n > maxDomainElements || len(open) > maxDomainDepth {
				return nil, fmt.Errorf("%w: line %d: more than %d elements, or deeper than %d", errDomain, line, maxDomainElements, maxDomainDepth)
			}
			e := &element{name: t.Name.Local, line: line}
			if len(t.Name.Space) > maxNameSpace { // it is part of each element's name
				return nil, fmt.Errorf("%w: line %d: a name space of more than %d bytes", errDomain, line, maxNameSpace)
			}
			if t.Name.Space != "" {
				e.name = t.Name.Space + ":" + e.name
			}
			for _, a := range t.Attr {
				if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
					e.attrs = append(e.attrs, attribute{name: a.Name.Local, value: a.Value})
				}
			}
			last.kids, open = append(last.kids, e), append(open, opened{element: e})
		case xml.EndElement:
			last.text = strings.TrimSpace(string(last.raw))
			open = open[:len(open)-1]
		case xml.CharData:
			last.raw = append(last.raw, t...)
		}
	}
}

// get takes an attribute; "" if there is none.
func (e *element) get(name string) string {
	e.taken = true
	for i := range e.attrs {
		if e.attrs[i].name == name {
			e.attrs[i].taken = true
			return e.attrs[i].value
		}
	}
	return ""
}

// is takes an attribute if it has one of some values.
func (e *element) is(name string, values ...string) bool {
	e.taken = true
	for i := range e.attrs {
		if e.attrs[i].name == name && slices.Contains(values, e.attrs[i].value) {
			e.attrs[i].taken = true
			return true
		}
	}
	return false
}

// words takes the text.
func (e *element) words() string {
	e.taken, e.told = true, true
	return e.text
}

// all takes the elements of a name in e.
func (e *element) all(name string) (list []*element) {
	e.taken = true
	for _, k := range e.kids {
		if k.name == name {
			k.taken = true
			list = append(list, k)
		}
	}
	return list
}

// one takes the first of them, and returns an empty one if there is none.
func (e *element) one(name string) *element {
	for _, k := range e.kids {
		if k.name == name {
			k.taken = true
			return k
		}
	}
	return &element{}
}

func (e *element) has(name string) bool { return e.one(name).name != "" }

// skip takes all that is in an element.
func (e *element) skip() {
	e.words()
	for i := range e.attrs {
		e.attrs[i].taken = true
	}
	for _, k := range e.kids {
		k.skip()
	}
}

// left lists what was not taken, each with its path below path.
func (e *element) left(path string) (list []string) {
	path += e.name
	if !e.taken {
		return []string{fmt.Sprintf("line %d: %s", e.line, path)}
	}
	for _, a := range e.attrs {
		if !a.taken {
			list = append(list, fmt.Sprintf("line %d: %s, %s=%q", e.line, path, a.name, a.value))
		}
	}
	if e.text != "" && !e.told {
		list = append(list, fmt.Sprintf("line %d: %s, %q", e.line, path, e.text))
	}
	for _, k := range e.kids {
		list = append(list, k.left(path+"/")...)
	}
	return list
}
