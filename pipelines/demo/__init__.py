"""Play Midbound: make events, sign them, send them, and run the whole line once."""
