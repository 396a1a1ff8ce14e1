"""One supervised child process: its guard, how it is launched, what it prints, and the registry on disk."""
