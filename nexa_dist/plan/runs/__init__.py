"""A run: its ranks' command line, its checks, its recovery, its manifest. Pure."""
