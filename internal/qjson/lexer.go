package qjson

// kind is the kind of a token.
type kind uint8

const (
	partial kind = iota // of a lexer: there is no token yet
	punct               // one of { } [ ] : ,
	str
	integer
	float
	keyword
	stray // an error: a byte that no token may have there
)

// state says how far into a token a lexer is.
type state uint8

const (
	start    state = iota
	skipping       // after an error
	inString
	inEscape
	inWord
	sign
	zero
	digits
	point
	fraction
	expMark
	expSign
	expDigits
)

// lexer finds tokens. A token's bytes are collected by the caller.
type lexer struct {
	state state
	quote byte
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// use says what the lexer has done with a byte.
type use uint8

const (
	skipped use = iota // it is in no token
	taken              // it is in the token under way, which may end with it
	again              // the token has ended before it
)

// next takes a byte. k is not partial if a token has ended.
func (l *lexer) next(c byte) (k kind, u use) {
	switch l.state {
	case skipping:
		switch {
		case c == '\n' || c == '\r':
			l.state = start
			return partial, skipped
		case c == '{' || c == '}' || c == '[' || c == ']' || c == ':' || c == ',' || c < 0x20 && c != '\t' || c >= 0xfe:
			l.state = start
			return l.next(c)
		}
		return partial, skipped
	case start:
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			return partial, skipped
		case c == '{' || c == '}' || c == '[' || c == ']' || c == ':' || c == ',':
			return punct, taken
		case c == '"' || c == '\'':
			l.quote = c
			l.state = inString
		case c == '-':
			l.state = sign
		case c == '0':
			l.state = zero
		case digit(c):
			l.state = digits
		case c >= 'a' && c <= 'z':
			l.state = inWord
		default:
			l.state = skipping
			return stray, taken
		}
		return partial, taken
	}
	return l.inside(c)
}

// inside takes a byte in a token.
func (l *lexer) inside(c byte) (k kind, u use) {
	step := func(s state) (kind, use) { l.state = s; return partial, taken }
	done := func(k kind, u use) (kind, use) { l.state = start; return k, u }
	switch l.state {
	case inString, inEscape:
		switch {
		case c < 0x20 || c >= 0xfe:
		case l.state == inEscape:
			return step(inString)
		case c == '\\':
			return step(inEscape)
		case c == l.quote:
			return done(str, taken)
		default:
			return partial, taken
		}
	case inWord:
		if c >= 'a' && c <= 'z' {
			return partial, taken
		}
		return done(keyword, again)
	case sign:
		switch {
		case c == '0':
			return step(zero)
		case digit(c):
			return step(digits)
		}
	case zero:
		switch {
		case c == '.':
			return step(point)
		case !digit(c):
			return done(integer, again)
		}
	case digits:
		switch {
		case digit(c):
			return partial, taken
		case c == '.':
			return step(point)
		case c == 'e' || c == 'E':
			return step(expMark)
		default:
			return done(integer, again)
		}
	case point:
		if digit(c) {
			return step(fraction)
		}
	case fraction:
		switch {
		case digit(c):
			return partial, taken
		case c == 'e' || c == 'E':
			return step(expMark)
		default:
			return done(float, again)
		}
	case expMark, expSign:
		switch {
		case digit(c):
			return step(expDigits)
		case l.state == expMark && (c == '+' || c == '-'):
			return step(expSign)
		}
	case expDigits:
		if digit(c) {
			return partial, taken
		}
		return done(float, again)
	}
	l.state = skipping
	return stray, taken
}
