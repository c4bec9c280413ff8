"""The corpus of bad input: what a user, a disk or a stranger may hand to the commands, and the words that answer it.

`experiments/` holds experiment files, `expected.txt` what each is answered with; `cases.py` lists these and all other cases, and
`build.py` makes what is large, binary or damaged. ../test_bad_input.py runs them.
"""
