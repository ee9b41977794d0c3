// Package cli is what the programs of this module share where a person or a script meets them:
// command lines, what is printed, commands that it runs, and exit statuses. A program parses its flags by Parse, prints
// to an Output, shows its progress on a StatusLine, and ends by the signals of Notify.
package cli
