"""The command line, a file for each command that needs one."""
