"""What a user may give `wrap`, one file for each library: its leaves, how it is called, and how it is put together."""
