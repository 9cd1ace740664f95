"""What people read of a study: the answer, the table, the page."""
