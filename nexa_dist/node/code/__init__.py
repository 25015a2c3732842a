"""Code on a node: unpacked, checked by its hash, laid into the working folder."""
