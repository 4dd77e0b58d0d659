"""What knows nothing of networks: checks, threads, files, compiled code, configurations."""
