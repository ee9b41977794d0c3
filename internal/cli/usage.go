package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// ErrWrong is found by errors.Is in the errors of a wrong command line. Their text does not
// contain its text: Tell says how to find the right command line.
var ErrWrong = errors.New("wrong command line")

// wrong is an error of a command line; it says what is wrong with it, and nothing else.
type wrong struct{ error }

func (w wrong) Is(target error) bool { return target == ErrWrong }
func (w wrong) Unwrap() error        { return w.error }

// Wrong returns an error of a wrong command line with the text of fmt.Errorf.
func Wrong(format string, args ...any) error { return wrong{fmt.Errorf(format, args...)} }

// Parse reads the flags of f, and what follows them, from args. Where they ask for help, it
// prints it to out, which begins with about, and returns flag.ErrHelp. Any other error is of a
// wrong command line, and nothing is printed.
func Parse(f *flag.FlagSet, about string, args []string, out io.Writer) error {
	f.SetOutput(io.Discard)
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		PrintUsage(out, about, f)
		return err
	case err != nil:
		return wrong{err}
	}
	return nil
}

// Tell says to stderr, in one line, what is wrong with the command line of a program, and that
// -h explains it. It returns the exit status: 2, or 0 if err is flag.ErrHelp, of which it says
// nothing.
func Tell(stderr io.Writer, program string, err error) int {
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(stderr, "%s: %s (-h explains)\n", program, oneLine(err))
	return 2
}

// oneLine returns the text of an error without line breaks.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// PrintUsage writes text, which says what the program does, how it is called and how it exits, and then
// the flags of f, one a line, with their defaults where there are any.
func PrintUsage(w io.Writer, text string, f *flag.FlagSet) {
	fmt.Fprint(w, text)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	f.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(t, "  -%s %s\t%s\n", f.Name, arg, text)
	})
	t.Flush()
}
