package qjson

import (
	"bytes"
	"fmt"
)

// The limits of QEMU 7.2.
const (
	MaxDepth  = 1024     // objects and arrays around a value
	MaxTokens = 2 << 20  // of one value
	MaxBytes  = 64 << 20 // of one value's tokens
)

// A SyntaxError is the answer of QEMU to input that is not its kind of JSON.
type SyntaxError struct{ Text string }

func (e *SyntaxError) Error() string { return e.Text }

func syntaxError(format string, args ...any) error {
	return &SyntaxError{"JSON parse error, " + fmt.Sprintf(format, args...)}
}

// A Parser finds values in a stream of bytes. The zero Parser has QEMU's limits.
type Parser struct {
	// MaxBytes bounds the bytes of one value's tokens; 0 is [MaxBytes], which is
	// also the most. The caller sets it before the first byte.
	MaxBytes int

	lex              lexer
	text             []byte  // of the tokens, one after the other
	tokens           []token // of the value so far
	at               int     // where the token under way begins
	braces, brackets int
}

// token is a token's kind and where its bytes end in the text.
type token struct {
	kind kind
	end  uint32
}

// Feed takes one byte. If it completes a value, done is true, and value is that value, or
// err is a [*SyntaxError] that says what is wrong with it. A byte may complete two
// values: a number or word that ends before it, and one that it is itself. Then more is
// true, and the byte is to be fed again.
func (p *Parser) Feed(c byte) (value any, done, more bool, err error) {
	k, u := p.lex.next(c)
	if u == taken {
		if p.text = append(p.text, c); len(p.text) > p.max() {
			// The token may be incomplete: what is left of it is read afresh.
			p.lex.state = start
			return p.fail(&SyntaxError{"JSON token size limit exceeded"}, false)
		}
	}
	if k == partial {
		return nil, false, false, nil
	}
	more = u == again
	switch k {
	case stray:
		text := p.text[p.at:]
		if i := bytes.IndexByte(text, 0); i >= 0 {
			text = text[:i]
		}
		return p.fail(syntaxError("stray '%s'", text), more)
	case punct:
		switch c {
		case '{':
			p.braces++
		case '}':
			p.braces--
		case '[':
			p.brackets++
		case ']':
			p.brackets--
		}
	}
	switch {
	case len(p.tokens) == MaxTokens:
		return p.fail(&SyntaxError{"JSON token count limit exceeded"}, more)
	case p.braces+p.brackets > MaxDepth:
		return p.fail(&SyntaxError{"JSON nesting depth limit exceeded"}, more)
	}
	p.tokens = append(p.tokens, token{k, uint32(len(p.text))})
	p.at = len(p.text)
	if (p.braces > 0 || p.brackets > 0) && p.braces >= 0 && p.brackets >= 0 {
		return nil, false, more, nil
	}
	value, err = parse(p.text, p.tokens)
	p.reset()
	return value, true, more, err
}

func (p *Parser) max() int {
	if p.MaxBytes > 0 {
		return min(p.MaxBytes, MaxBytes)
	}
	return MaxBytes
}

func (p *Parser) fail(err error, more bool) (any, bool, bool, error) {
	p.reset()
	return nil, true, more, err
}

// reset forgets the value under way, and gives back what a large one took.
func (p *Parser) reset() {
	const keep = 64 << 10
	if p.braces, p.brackets, p.at = 0, 0, 0; cap(p.text) > keep {
		p.text = nil
	}
	if cap(p.tokens) > keep/16 {
		p.tokens = nil
	}
	p.text, p.tokens = p.text[:0], p.tokens[:0]
}
