package colo

import (
	"context"
	"testing"
)

// A question to the arbiter ends when an order is given that is news to it, be that before it is
// asked or after.
func TestAQuestionEndsWithAnOrderThatIsNews(t *testing.T) {
	fenced := func(s *session) { s.fence() }
	shut := func(s *session) { s.shut() }
	for _, c := range []struct {
		what    string
		ordered bool // when it is asked
		order   func(*session)
		ends    bool
	}{
		{"fenced", false, fenced, true},
		{"fenced, after an order", true, fenced, true},
		{"an order", false, shut, true},
		{"the order that it is asked for", true, shut, false},
	} {
		for _, before := range []bool{true, false} {
			s := new(session)
			s.init(discardConn{}, "", 0)
			ctx, cancel := context.WithCancel(t.Context())
			if before {
				c.order(s)
			}
			s.asks(question{cancel, c.ordered})
			if !before {
				c.order(s)
			}
			if ended := ctx.Err() != nil; ended != c.ends {
				t.Errorf("%s, given before %v: ended %v", c.what, before, ended)
			}
			cancel()
		}
	}
}

// An order ends no question that has been answered.
func TestAnAnsweredQuestionIsNotEnded(t *testing.T) {
	s := new(session)
	s.init(discardConn{}, "", 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.asks(question{cancel, false})
	s.asks(question{})
	s.fence()
	s.shut()
	if ctx.Err() != nil {
		t.Error("ended")
	}
}

// discardConn takes all, and has nothing to read.
type discardConn struct{}

func (discardConn) Read([]byte) (int, error)    { return 0, context.Canceled }
func (discardConn) Write(b []byte) (int, error) { return len(b), nil }
func (discardConn) Close() error                { return nil }
