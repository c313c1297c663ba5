"""The command line: verbs, the first and last screen of a run, exit status and Ctrl-C, chat, completion."""
