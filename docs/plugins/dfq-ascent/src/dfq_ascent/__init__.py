"""Images that student and teacher disagree on, for dfq-plugins."""
