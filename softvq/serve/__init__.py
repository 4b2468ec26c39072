"""In production: a server, a staged roll-out, and an alarm that says when photos have changed."""
