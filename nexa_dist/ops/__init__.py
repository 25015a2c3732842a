"""One file a verb: puts plan and run in order. Nothing here prints; it reports to its Context."""
