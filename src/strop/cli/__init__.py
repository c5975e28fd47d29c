"""The command line: a file per verb, thin; each parses, calls a room, and prints.

main       builds the app, runs the verb, turns every failure into four plain parts and an exit code
app        the verbs, and a help page with examples for each
overrides  --section.field value, taken out of the command line before the verb parses the rest; --memory
faults     the parser's errors in Strop's own form, with the nearest name
console    what is printed where: progress and tables on standard error, results on standard output
progress   the training loop's events as a progress bar, or as plain lines
show       the resolved recipe as a table, forecast beside fact
curve      the memory–time curve, in braille or ASCII
units      bytes → 7.8 GB, seconds → 3 min 20 s
"""
