// Package usage prints what programs say to -h, in one format.
package usage

import (
	"flag"
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes text, which says what the program does, how it is called and how it exits, and then
// the flags of f, one a line, with their defaults where there are any.
func Print(w io.Writer, text string, f *flag.FlagSet) {
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
