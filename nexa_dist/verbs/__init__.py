"""What each verb of the command line prints and returns. The work is in ops; the words are here."""
