package main

import "io"

func compare(o options, stdin io.Reader, stdout, stderr io.Writer) int { return 2 }
