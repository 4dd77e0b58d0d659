"""Modules that know nothing of networks: checks, threads, files, compiled code, configurations."""
